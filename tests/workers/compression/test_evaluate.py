"""Judging: every figure has a case in which it is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.evaluate import quality
from headrace_workers.compression.evaluation.invariance import batch_distance
from headrace_workers.compression.evaluation.speed import compare, module_contestant, workload
from headrace_workers.compression.evaluation.statistics import bootstrap, kl_of_rows, neighbours_kept, spearman
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.compression.subject import ModuleSubject, Subject, TextSubject, load_subject
from headrace_workers.kernels.layers import resident_bytes
from headrace_workers.models.source import find_source

TinyModel = Callable[..., Path]


@pytest.fixture
def encoder(tiny_model: TinyModel) -> TextSubject:
    return load_subject(find_source(tiny_model("Bert")))


@pytest.fixture
def classifier(tiny_model: TinyModel) -> TextSubject:
    return load_subject(find_source(tiny_model("Bert", "ForSequenceClassification", num_labels=3)))


@pytest.fixture
def texts(tiny_texts: list[str]) -> Examples:
    return Examples([text + more for text in tiny_texts for more in ("", " wheel", " water runs")])


def in_int8(subject: TextSubject) -> Subject:
    twin = subject.clone()
    quantize_model(twin.module)
    return twin


# -- what it is for -----------------------------------------------------------------------------------------


def test_a_model_is_as_good_as_itself(encoder: TextSubject, texts: Examples) -> None:
    found = quality(encoder, encoder, texts, 0)

    assert found.metric_name == "similarity"
    assert found.metric == pytest.approx(1)
    assert found.metric_drop == pytest.approx(0)
    assert (found.agreement, found.examples) == (1, len(texts))
    assert found.cosine_min == pytest.approx(1)
    assert found.kl is None
    assert found.batch_invariant


def test_an_embedding_model_in_int8(encoder: TextSubject, texts: Examples) -> None:
    found = quality(in_int8(encoder), encoder, texts, 0)

    assert found.cosine_min is not None
    assert found.cosine_p1 is not None
    assert found.cosine_p50 is not None
    assert 0.9 < found.cosine_min <= found.cosine_p1 <= found.cosine_p50 < 1
    assert 0.5 < found.metric_low <= found.metric <= found.metric_high < 1
    assert found.metric_drop == pytest.approx(1 - found.metric)
    # Not a bit of an answer may depend on the batch, and none does.
    assert (found.batch_invariant, found.batch_distance) == (True, 0)


def test_a_classifier_with_labels(classifier: TextSubject, texts: Examples) -> None:
    """Labelled as the model answers itself but for three examples: the original's accuracy is known."""
    with torch.inference_mode():
        labels = (
            torch.cat([classifier.answers(batch).rows for batch in classifier.batches(texts, 8)]).argmax(1).tolist()
        )
    wrong = [(label + 1) % 3 for label in labels[:3]] + labels[3:]

    same, found = (
        quality(subject, classifier, Examples(texts.inputs, wrong), 0) for subject in (classifier, in_int8(classifier))
    )

    assert (same.metric, same.metric_drop) == (same.metric_original, 0)
    assert same.metric == pytest.approx(1 - 3 / len(labels))
    assert found.metric_name == "accuracy"
    assert found.metric_original == pytest.approx(1 - 3 / len(labels))
    assert found.metric_low <= found.metric <= found.metric_high
    assert found.metric_drop == pytest.approx((found.metric_original - found.metric) / found.metric_original)
    assert found.kl is not None
    assert found.kl > 0
    assert found.cosine_mean is None


def test_without_labels_a_classifier_is_asked_for_agreement(classifier: TextSubject, texts: Examples) -> None:
    other = classifier.clone()
    other.module.get_parameter("classifier.bias").data[:] = torch.tensor([1e4, 0.0, 0.0])

    same, changed = (quality(subject, classifier, texts, 0) for subject in (classifier, other))

    assert (same.metric_name, same.metric, same.kl) == ("agreement", 1, 0)
    assert changed.metric < 1
    assert changed.metric == changed.agreement
    assert changed.metric_drop == pytest.approx(1 - changed.metric)


def test_a_language_model_is_asked_for_its_perplexity(tiny_model: TinyModel, texts: Examples) -> None:
    model = tiny_model("Llama", "ForCausalLM", num_key_value_heads=1)
    subject = load_subject(find_source(model), "causal_lm")
    with torch.inference_mode():
        said = [subject.answers(batch) for batch in subject.batches(texts, 1)]
    rows, targets = torch.cat([one.rows for one in said]), torch.cat([one.targets for one in said])  # type: ignore[misc]
    expected = math.exp(float(nn.functional.cross_entropy(rows, targets)))
    flat = subject.clone()
    flat.module.get_parameter("lm_head.weight").data.zero_()

    same, ruined = quality(subject, subject, texts, 0), quality(flat, subject, texts, 0)

    assert same.perplexity == pytest.approx(expected, rel=1e-3)
    assert (same.perplexity_ratio, same.metric_drop) == (1, 0)
    # A model that knows nothing is surprised by every word of its vocabulary alike.
    assert ruined.perplexity == pytest.approx(1200, rel=1e-3)
    assert ruined.metric_drop == pytest.approx(1200 / expected - 1, rel=1e-3)


def test_any_module_is_judged_and_timed() -> None:
    torch.manual_seed(0)
    subject = ModuleSubject(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    examples = Examples(list(torch.randn(40, 4)), [0, 1] * 20)

    found = quality(subject, subject, examples, 0)
    side = module_contestant(subject)
    speed = compare(side, side, workload(subject, examples), rounds=3)

    assert (found.metric_name, found.kl, found.agreement) == ("accuracy", 0, 1)
    assert speed.buckets.keys() == {"mixed"}
    assert speed.speedup > 0


def test_speed_is_asked_for_each_length(encoder: TextSubject, texts: Examples) -> None:
    work = workload(encoder, texts, tokens=200)

    assert list(work) == ["mixed", "up to 16 tokens", "up to 64 tokens"]
    assert work["mixed"] == list(texts)[: len(work["mixed"])]
    assert all(len(text.split()) <= 14 for text in work["up to 16 tokens"])


# -- batch mates --------------------------------------------------------------------------------------------


class OneRangeForAll(nn.Module):
    """What headrace never does: quantize activations by the range of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().max() / 7
        rounded: Tensor = self.linear((x / scale).round() * scale)
        return rounded


def test_a_range_over_a_whole_batch_is_found_out() -> None:
    torch.manual_seed(0)
    examples = Examples(list(torch.randn(16, 4) * torch.logspace(-2, 2, 16)[:, None]))
    subject = ModuleSubject(OneRangeForAll())

    found = quality(subject, subject, examples, 0)

    assert not found.batch_invariant
    assert found.batch_distance > 0.01


def test_fp32_may_only_round_otherwise(classifier: TextSubject, texts: Examples) -> None:
    assert batch_distance(classifier, texts, seed=3) < 1e-5


# -- edges --------------------------------------------------------------------------------------------------


def test_a_model_that_answers_nan(classifier: TextSubject, texts: Examples) -> None:
    broken = classifier.clone()
    broken.module.get_parameter("classifier.bias").data[0] = float("nan")

    with pytest.raises(StageError, match="NaN"):
        quality(broken, classifier, texts, 0)


def test_one_example_judges_nothing(encoder: TextSubject) -> None:
    with pytest.raises(CompressionDataError, match="1 examples judge nothing"):
        quality(encoder, encoder, Examples(["water"]), 0)


def test_judging_changes_nothing(encoder: TextSubject, texts: Examples) -> None:
    subject = in_int8(encoder)
    before = resident_bytes(subject.module), resident_bytes(encoder.module)

    first, again = (quality(subject, encoder, texts, 5) for _ in range(2))

    assert first == again
    assert (resident_bytes(subject.module), resident_bytes(encoder.module)) == before
    assert before[0] < before[1]


# -- arithmetic ---------------------------------------------------------------------------------------------


def test_kl_of_known_distributions() -> None:
    meant, said = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()

    found = kl_of_rows(meant, said)

    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0], abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 600), seed=st.integers(0, 99))
def test_kl_is_never_below_zero(rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(rows, 5, generator=generator) * 9 for _ in range(2))

    assert kl_of_rows(one, other).shape == (rows,)
    assert float(kl_of_rows(one, other).min()) >= 0
    assert float(kl_of_rows(one, one).max()) < 1e-5


def test_spearman_looks_at_order_alone() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 5.0])

    assert spearman(values, values.exp()) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    # By hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_neighbours() -> None:
    """The third is nearest to the second by a hair, and moves over to the first."""
    before = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 1.0]]))
    after = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.9]]))

    assert neighbours_kept(before, before).tolist() == [True, True, True]
    assert neighbours_kept(before, after).tolist() == [True, True, False]


def test_an_interval_holds_the_figure_and_shrinks_with_more_examples() -> None:
    values = torch.arange(400.0) % 7

    def mean_of(places: Tensor) -> float:
        return float(values[places].mean())

    few, many = bootstrap(mean_of, 20, seed=0), bootstrap(mean_of, 400, seed=0)

    assert many.low < float(values.mean()) < many.high
    assert many.high - many.low < few.high - few.low
    assert bootstrap(mean_of, 20, seed=0) == few
