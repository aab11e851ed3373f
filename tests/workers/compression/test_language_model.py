"""A real causal language model under the knife: what it predicts, how well, and what int8 weights do to that."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

import pytest
import torch

from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.evaluation.prepared import prepared_copy
from headrace_workers.compression.quantization.quantize import quantize
from headrace_workers.compression.recipe import ActivationScheme, Quantize, WeightScheme
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Answers, Subject, TextSubject, load_subject
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def subject(smollm2: Path) -> TextSubject:
    """SmolLM2-135M-Instruct in float32."""
    return load_subject(find_source(smollm2))


@pytest.fixture(scope="module")
def paragraphs() -> Examples:
    """English that the model was not asked to learn by heart: Python's documentation, about 300 tokens of it."""
    found = [" ".join(part.split()) for topic in sorted(topics) for part in re.split(r"\n\n+", topics[topic])]
    return Examples([text for text in found if 300 < len(text) < 500 and text[0].isalpha()][:3])


def _answers(subject: Subject, examples: Examples) -> list[Answers]:
    with torch.inference_mode():
        return [subject.answers(batch) for batch in subject.batches(examples, 3)]


def _perplexity(answers: list[Answers]) -> float:
    losses = []
    for one in answers:
        assert one.targets is not None
        losses.append(torch.nn.functional.cross_entropy(one.rows, one.targets, reduction="none"))
    return float(torch.cat(losses).mean().exp())


def test_it_continues_a_text_with_sense(subject: TextSubject) -> None:
    ids = torch.tensor([load_tokenizer(subject.source, 64)(["The capital of France is"])[0].ids.tolist()])
    model: Any = subject.module
    generated = model.generate(ids, max_new_tokens=1, do_sample=False, attention_mask=torch.ones_like(ids))
    assert load_tokenizer(subject.source, 64)([" Paris"])[0].ids.tolist() == generated[0, -1:].tolist()


def test_its_perplexity_is_that_of_a_language_model(subject: TextSubject, paragraphs: Examples) -> None:
    assert _perplexity(_answers(subject, paragraphs)) < 40


def test_each_row_is_judged_by_the_token_that_follows(subject: TextSubject) -> None:
    texts = ["Water turns the wheel.", "A longer text about the wheel that the water turns."]
    (together,) = _answers(subject, Examples(texts))
    alone = [answers for text in texts for answers in _answers(subject, Examples([text]))]
    assert together.targets is not None
    assert torch.equal(together.targets, torch.cat([one.targets for one in alone if one.targets is not None]))
    assert torch.allclose(together.rows, torch.cat([one.rows for one in alone]), atol=1e-3)


def test_its_embeddings_are_its_head(subject: TextSubject) -> None:
    model: Any = subject.module
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("activations", ["none", "dynamic_token"])
def test_int8_weights_keep_its_perplexity(
    activations: Literal["none", "dynamic_token"], subject: TextSubject, paragraphs: Examples
) -> None:
    stage = Quantize(weights=WeightScheme(activations=ActivationScheme(kind=activations)))
    data = Split(paragraphs, paragraphs, paragraphs)
    small = quantize(subject.clone(), stage, StageContext(original=subject, data=data))
    small.module = prepared_copy(small)
    worse = _perplexity(_answers(small, paragraphs)) / _perplexity(_answers(subject, paragraphs))
    assert worse < {"none": 1.03, "dynamic_token": 1.10}[activations]
