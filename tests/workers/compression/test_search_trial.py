"""The search with a real model: small, with data that a few steps can learn from."""

from __future__ import annotations

import random

import pytest

from headrace_workers.artifacts.artifact import open_artifact
from headrace_workers.compression.data import Examples, split
from headrace_workers.compression.evaluation.judging import Measures
from headrace_workers.compression.recipe import Distill, Quantize, Recipe, Recover, Student, Training
from headrace_workers.compression.search.candidates import Effort
from headrace_workers.compression.search.front import Front, decide, read_front
from headrace_workers.compression.search.latency_table import uses_of
from headrace_workers.compression.search.profile import Role, profile_of
from headrace_workers.compression.search.served import Arrival, ServedFigures
from headrace_workers.compression.search.study_search import search
from headrace_workers.compression.search.target import parse_target
from headrace_workers.compression.search.trial import ModelStudy, figures_of, scaled
from headrace_workers.compression.subject import TextSubject, load_subject
from headrace_workers.models.source import find_source
from workers.conftest import WORDS, TinyModel

TARGET = parse_target("size<=25%, agreement>=30%")
CALLS: list[tuple[str, str]] = []


def serve(model: object, texts: object, *, precision: str, variant: str, trace: object = ()) -> ServedFigures:
    """Stands where the cluster package would: this one must not import it."""
    assert texts
    assert trace == [Arrival(0.0, "water")]
    CALLS.append((precision, variant))
    return ServedFigures(texts_per_s=10.0 * len(CALLS), replicas=1)


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = random.Random(0)
    texts = list(dict.fromkeys(" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(200)))
    return Examples(texts, [int("water" in text) for text in texts], ("dry", "wet"))


@pytest.fixture(scope="module")
def subject(tiny_model: TinyModel) -> TextSubject:
    folder = tiny_model("Bert", "ForSequenceClassification", num_labels=2)
    return load_subject(find_source(folder))


@pytest.fixture(scope="module")
def study(subject: TextSubject, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> ModelStudy:
    return ModelStudy(
        subject,
        split(examples),
        tmp_path_factory.mktemp("search"),
        effort=Effort(distill_steps=4, recover_steps=4, batch_size=8),
        measures=Measures(rounds=1, round_tokens=64, every_stage=False),
        most=5,
        served=serve,
        trace=[Arrival(0.0, "water")],
    )


@pytest.fixture(scope="module")
def front(study: ModelStudy) -> Front:
    return search(study, TARGET, study.folder, budget_s=3600)


def test_a_model_is_known_by_its_shapes(subject: TextSubject) -> None:
    profile = profile_of(subject.module)
    assert (profile.blocks, profile.hidden, profile.heads, profile.groups, profile.ffn) == (2, 64, 2, 2, 128)
    assert profile.uses() == uses_of(subject.module)
    assert {linear.name for linear in profile.linears if linear.exact} == {"classifier", "bert.pooler.dense"}
    assert sum(linear.role is Role.QUERY for linear in profile.linears) == 2
    assert profile.stored_bytes(32) == 4 * sum(parameter.numel() for parameter in subject.module.parameters())


def test_it_ends_with_an_artifact_that_meets_the_target(front: Front, study: ModelStudy) -> None:
    assert front.met, front.shortfalls
    assert front.ended == "complete"
    chosen = front.entry(front.chosen)
    manifest = open_artifact(study.folder / chosen.artifact).manifest
    assert manifest.metrics["size_ratio"] == pytest.approx(chosen.figures["size"])
    assert read_front(study.folder) == front


def test_the_front_can_be_decided_again(front: Front, study: ModelStudy) -> None:
    """It holds a timing for every layer of every candidate, also of those that were cut unevenly."""
    decision = decide(front, TARGET, study.table)
    assert decision.speeds[front.chosen] == pytest.approx(front.entry(front.chosen).asked["speed"], rel=1e-3)


def test_what_was_proposed_can_be_made(front: Front) -> None:
    assert not front.failed
    names = " ".join(entry.name for entry in front.entries)
    assert all(kind in names for kind in ("heads", "layers", "student"))


def test_what_was_predicted_is_what_was_built(front: Front, study: ModelStudy) -> None:
    """Sizes to within a tenth, and the very shapes, where nothing decides on the way."""
    predicted = {one.key: one for one in study.propose(TARGET, 0.0, lambda _what, _share: None)}
    plain = next(entry for entry in front.entries if entry.name == "int8")
    student = next(entry for entry in front.entries if entry.name.startswith("student"))
    for entry in (plain, student):
        assert list(predicted[entry.key].uses) == entry.uses
        assert entry.figures["size"] == pytest.approx(predicted[entry.key].size_ratio, rel=0.1)


def test_finalists_are_served_and_judged_by_what_nobody_chose_by(front: Front) -> None:
    assert CALLS[0][0] == "fp32"
    assert {precision for precision, _ in CALLS[1:]} == {"int8"}
    finalists = [entry for entry in front.entries if entry.final]
    assert 1 <= len(finalists) <= 3
    assert all({"drop", "agreement", "kl"} <= set(entry.held_out) for entry in finalists)
    assert all("speed" not in entry.held_out and entry.served is not None for entry in finalists)


def test_it_goes_on_where_it_was(front: Front, study: ModelStudy) -> None:
    """All was tried: nothing is again."""
    before = (study.folder / "search.jsonl").read_bytes()
    again = search(study, TARGET, study.folder, budget_s=3600)
    assert again.chosen == front.chosen
    assert (study.folder / "search.jsonl").read_bytes() == before


def test_a_glimpse_trains_for_a_share_of_the_steps() -> None:
    stages = [Distill(student=Student(layers=1), training=Training(steps=200)), Recover(), Quantize()]
    recipe = Recipe(stages=stages)
    first, second, _ = scaled(recipe, 0.1).stages
    assert isinstance(first, Distill)
    assert isinstance(second, Recover)
    assert (first.training.steps, second.training.steps) == (20, 50)
    assert first.training.batch_size == 32
    assert scaled(recipe, 1e-9).stages[0].training.steps == 1  # type: ignore[union-attr]


def test_what_was_not_measured_has_no_figure() -> None:
    assert figures_of({"speedup": 2.0, "size_ratio": 0.3, "metric_drop": -0.01}) == {
        "speed": 2.0,
        "size": 0.3,
        "drop": -0.01,
    }
