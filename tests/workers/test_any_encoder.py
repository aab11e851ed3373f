"""Encoders of several makes and all tasks: packed where that is right, one by one where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headrace.errors import ModelLoadError
from headrace.messages import Tensor
from headrace_workers import Prepared
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.loading import load_model
from headrace_workers.models.runner import can_pack
from headrace_workers.models.source import find_source

MAKES: list[tuple[str, dict[str, Any]]] = [
    ("Bert", {}),
    ("Roberta", {}),
    ("XLMRoberta", {}),
    ("Electra", {"embedding_size": 32}),
    ("DistilBert", {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}),
    ("ModernBert", {"intermediate_size": 96, "global_attn_every_n_layers": 2, "local_attention": 24}),
    ("Camembert", {"num_attention_heads": 8}),
]
LABELS = {"id2label": {0: "mill", 1: "wheel", 2: "O"}, "label2id": {"mill": 0, "wheel": 1, "O": 2}}
make_of = pytest.mark.parametrize(("make", "settings"), MAKES, ids=[name for name, _ in MAKES])
TinyModel = Callable[..., Path]


def answers(engine: EncoderEngine, texts: list[str], **params: Any) -> list[Any]:
    items = [item for item in engine.prepare([(text, params) for text in texts]) if isinstance(item, Prepared)]
    assert len(items) == len(texts)
    return engine.run(items)


def by_the_book(folder: Path, head: str, text_ids: list[list[int]]) -> list[NDArray[np.float32]]:
    """What transformers itself gives, one text after the other."""
    import transformers

    model = getattr(transformers, f"AutoModel{head}").from_pretrained(folder).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids]))[0][0].numpy() for ids in text_ids]


def ids_of(engine: EncoderEngine, texts: list[str]) -> list[list[int]]:
    prepared = engine.prepare([(text, {}) for text in texts])
    return [item.data.tokens.ids.tolist() for item in prepared if isinstance(item, Prepared)]


@make_of
def test_any_encoder_embeds_as_transformers_does(
    make: str, settings: dict[str, Any], tiny_model: TinyModel, tiny_texts: list[str]
) -> None:
    """Packed, in full precision: mean of the hidden states, for texts of one token to sixty."""
    folder = tiny_model(make, **settings)
    engine = EncoderEngine(folder, precision="fp32")

    got = np.stack([answer.numpy() for answer in answers(engine, tiny_texts)])

    assert engine.info.details["packed"], engine.info.details
    expected = [rows.mean(0) for rows in by_the_book(folder, "", ids_of(engine, tiny_texts))]
    np.testing.assert_allclose(got, np.stack(expected), rtol=2e-4, atol=2e-5)


@make_of
def test_any_encoder_runs_in_int8_and_no_answer_depends_on_the_batch(
    make: str, settings: dict[str, Any], tiny_model: TinyModel, tiny_texts: list[str]
) -> None:
    folder = tiny_model(make, **settings)
    engine = EncoderEngine(folder, kernels="int8")
    plain = EncoderEngine(folder, precision="fp32")

    together = [answer.data for answer in answers(engine, tiny_texts)]

    assert engine.info.details["batch_invariant"]
    assert [answers(engine, [text])[0].data for text in tiny_texts] == together
    assert [answer.data for answer in answers(engine, tiny_texts[::-1])] == together[::-1]
    pairs = zip(answers(engine, tiny_texts), answers(plain, tiny_texts), strict=True)
    cosines = [_cosine(one.numpy(), other.numpy()) for one, other in pairs]
    assert min(cosines) > 0.97


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


CLASSIFIERS = [make for make in MAKES if make[0] != "Camembert"]


@pytest.mark.parametrize(("make", "settings"), CLASSIFIERS, ids=[name for name, _ in CLASSIFIERS])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_any_encoder_classifies_texts(
    make: str, settings: dict[str, Any], precision: Any, tiny_model: TinyModel, tiny_texts: list[str]
) -> None:
    folder = tiny_model(make, "ForSequenceClassification", **settings, **LABELS)
    engine = EncoderEngine(folder, precision=precision, kernels="int8")

    got = answers(engine, tiny_texts)

    assert (engine.info.task, engine.info.details["packed"]) == ("sequence_classification", True)
    logits = by_the_book(folder, "ForSequenceClassification", ids_of(engine, tiny_texts))
    for answer, row in zip(got, logits, strict=True):
        scores = dict(zip(("mill", "wheel", "O"), np.exp(row) / np.exp(row).sum(), strict=True))
        assert {found["label"]: found["score"] for found in answer} == pytest.approx(
            scores, abs=1e-4 if precision == "fp32" else 0.15
        )
        assert [found["score"] for found in answer] == sorted((found["score"] for found in answer), reverse=True)
    if precision == "int8":
        assert [answers(engine, [text])[0] for text in tiny_texts] == got


@pytest.mark.parametrize("make", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_any_encoder_labels_tokens(make: str, tiny_model: TinyModel, tiny_texts: list[str]) -> None:
    folder = tiny_model(make, "ForTokenClassification", **dict(MAKES)[make], **LABELS)
    engine = EncoderEngine(folder, precision="fp32")

    got = answers(engine, tiny_texts, all=True)

    assert (engine.info.task, engine.info.details["packed"]) == ("token_classification", True)
    logits = by_the_book(folder, "ForTokenClassification", ids_of(engine, tiny_texts))
    for text, answer, rows in zip(tiny_texts, got, logits, strict=True):
        assert [found["word"] for found in answer] == text.split()
        assert all(text[found["start"] : found["end"]] == found["word"] for found in answer)
        best = rows[1:-1].argmax(1)  # the tokenizer's own tokens at either end are not answered
        assert [found["label"] for found in answer] == [("mill", "wheel", "O")[at] for at in best]


def test_tokens_without_a_finding_are_left_out(tiny_model: TinyModel, tiny_texts: list[str]) -> None:
    folder = tiny_model("Bert", "ForTokenClassification", **LABELS)
    engine = EncoderEngine(folder, precision="fp32")

    everything, findings = answers(engine, tiny_texts, all=True), answers(engine, tiny_texts)

    assert findings == [[found for found in answer if found["label"] != "O"] for answer in everything]
    assert findings != everything


def test_only_the_best_labels_if_asked_for(tiny_model: TinyModel) -> None:
    engine = EncoderEngine(tiny_model("Bert", "ForSequenceClassification", **LABELS), precision="fp32")

    (every,) = answers(engine, ["the mill"])
    (best,) = answers(engine, ["the mill"], top_k=1)

    assert best == every[:1]
    assert sum(found["score"] for found in every) == pytest.approx(1)


def test_independent_labels_have_independent_scores(tiny_model: TinyModel) -> None:
    """`problem_type` decides: several labels can be true at once, or the score is a number of its own."""
    folder = tiny_model("Bert", "ForSequenceClassification", **LABELS, problem_type="multi_label_classification")
    engine = EncoderEngine(folder, precision="fp32")
    (answer,) = answers(engine, ["water runs down"])
    (logits,) = by_the_book(folder, "ForSequenceClassification", ids_of(engine, ["water runs down"]))
    assert {found["label"]: found["score"] for found in answer} == pytest.approx(
        dict(zip(("mill", "wheel", "O"), 1 / (1 + np.exp(-logits)), strict=True)), abs=1e-4
    )

    folder = tiny_model("Bert", "ForSequenceClassification", num_labels=1, problem_type="regression")
    (answer,) = answers(EncoderEngine(folder, precision="fp32"), ["water runs down"])
    (logits,) = by_the_book(folder, "ForSequenceClassification", ids_of(engine, ["water runs down"]))
    assert answer == [{"label": "LABEL_0", "score": pytest.approx(float(logits[0]), abs=1e-4)}]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_cannot_be_packed_runs_one_by_one_and_says_so(
    precision: Any, tiny_model: TinyModel, tiny_texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """MPNet's attention has a bias by distance within the row: packed it would be wrong, and that is noticed."""
    folder = tiny_model("MPNet")
    engine = EncoderEngine(folder, precision=precision, kernels="int8")

    got = np.stack([answer.numpy() for answer in answers(engine, tiny_texts)])

    assert engine.info.details["packed"] is False
    assert engine.info.details["not_packed_because"]
    assert "cannot be run packed" in caplog.text
    expected = np.stack([rows.mean(0) for rows in by_the_book(folder, "", ids_of(engine, tiny_texts))])
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5 if precision == "fp32" else 0.1)
    assert [answers(engine, [text])[0].data for text in tiny_texts] == [row.tobytes() for row in got]


def test_a_wrong_position_is_noticed(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: RoBERTa counts positions from behind its padding id; without that, packing must be refused."""
    from headrace_workers.models.loading import LoadedModel

    folder = tiny_model("Roberta")
    probes = [np.array([0, 5, 6, 2]), np.array([0, 7, 2])]
    model = load_model(find_source(folder), "embedding")
    assert model.first_position == 2
    assert can_pack(model, probes) == ""

    monkeypatch.setattr(LoadedModel, "first_position", 0)
    assert "differ by" in can_pack(load_model(find_source(folder), "embedding"), probes)


def test_a_leak_between_texts_is_noticed(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: attention that does not keep the texts apart."""
    from headrace_workers.kernels import attention
    from headrace_workers.kernels.attention import Packing

    model = load_model(find_source(tiny_model("Bert")), "embedding")
    own = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v, p, **how: own(q, k, v, Packing([p.tokens]), **how))

    assert "differ by" in can_pack(model, [np.array([0, 5, 6, 2]), np.array([0, 7, 2])])


def test_bf16_is_close_to_fp32(minilm: Path, sentences: list[str]) -> None:
    from headrace_workers import node

    if not node.capabilities().bf16:
        with pytest.raises(ModelLoadError, match="no bf16"):
            EncoderEngine(minilm, precision="bf16")
        return
    half, full = EncoderEngine(minilm, precision="bf16"), EncoderEngine(minilm, precision="fp32")

    pairs = zip(answers(half, sentences[:20]), answers(full, sentences[:20]), strict=True)

    assert min(_cosine(one.numpy(), other.numpy()) for one, other in pairs) > 0.995
    assert all(isinstance(answer, Tensor) for answer in answers(half, sentences[:2]))


def test_a_model_without_a_head_does_no_classification(minilm: Path) -> None:
    """transformers would fill the head with random numbers and answer as if nothing were wrong."""
    with pytest.raises(ModelLoadError, match="no weights for classifier"):
        EncoderEngine(minilm, task="sequence_classification")
