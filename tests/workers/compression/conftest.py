"""Small models as subjects, and data to look at them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from headrace_workers.artifacts.artifact import Task
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import parse_recipe
from headrace_workers.compression.report import CompressionReport
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, TextSubject, load_subject
from headrace_workers.models.source import find_source
from support.counting_stages import QUICK, Stages

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

_TASKS: Final[dict[str, Task]] = {
    "Model": "embedding",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForCausalLM": "causal_lm",
}


@pytest.fixture(scope="session")
def tiny_subject(tiny_model: Callable[..., Path]) -> TinySubject:
    """`tiny_model`'s models as subjects; each call loads the model anew, so that a test may change it."""
    folders: dict[str, Path] = {}

    def make(make_of: str, head: str = "Model", **settings: Any) -> TextSubject:
        key = f"{make_of} {head} {sorted(settings.items())}"
        if key not in folders:
            folders[key] = tiny_model(make_of, head, **settings)
        return load_subject(find_source(folders[key]), _TASKS[head])

    return make


@pytest.fixture(scope="session")
def context_of(tiny_texts: list[str]) -> ContextOf:
    """What a stage is given besides a subject: a few texts, no labels."""
    data = Split(Examples(tiny_texts), Examples(tiny_texts[:6]), Examples(tiny_texts[2:]))
    return lambda subject: StageContext(original=subject, data=data)


@pytest.fixture
def stages() -> Stages:
    """Stages that count how often they run."""
    return Stages()


@pytest.fixture
def pipeline_model(tiny_model: Callable[..., Path]) -> Path:
    """A BERT of one block."""
    return tiny_model("Bert", num_hidden_layers=1)


@pytest.fixture
def pipeline_data(tiny_texts: list[str]) -> Split:
    """Texts enough to be cut into parts."""
    words = " ".join(tiny_texts).split()[:20]
    return split(Examples([f"{text} {word}" for text in tiny_texts for word in words]))


@pytest.fixture
def run_pipeline(
    pipeline_model: Path, pipeline_data: Split, stages: Stages, tmp_path: Path
) -> Callable[..., CompressionReport]:
    """Compresses the BERT to `out` by a recipe, with the stages that count."""

    def run(content: dict[str, Any], **options: Any) -> CompressionReport:
        settings: dict[str, Any] = {"model": pipeline_model, "measures": QUICK, "stages": stages.functions()}
        subject = load_subject(find_source(pipeline_model))
        return compress_subject(
            subject, pipeline_data, parse_recipe(content), tmp_path / "out", **{**settings, **options}
        )

    return run
