"""How an engine is used, from the first text to a batch with a bad job in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailureCode
from headrace.messages import Tensor
from headrace_workers import ItemError, Prepared
from headrace_workers.engines import EngineConfig, make_engine
from headrace_workers.engines.encoder import EncoderEngine


def vectors(engine: EncoderEngine, texts: list[str]) -> NDArray[np.float32]:
    """The embeddings of texts, one a row."""
    items = [item for item in engine.prepare([(text, {}) for text in texts]) if isinstance(item, Prepared)]
    assert len(items) == len(texts)
    return np.stack([answer.numpy() for answer in engine.run(items)])


def test_a_text_becomes_a_vector(engine: EncoderEngine) -> None:
    """`prepare` validates and tokenizes, `run` computes; the answer is a `Tensor` as it travels."""
    (item,) = engine.prepare([("The wheel turns.", {})])
    assert isinstance(item, Prepared)
    assert item.tokens == 6  # four, and one at either end

    (answer,) = engine.run([item])

    assert isinstance(answer, Tensor)
    assert (answer.dtype, answer.shape) == ("float32", [384])
    assert abs(float(np.linalg.norm(answer.numpy())) - 1) < 1e-5  # as the model's own configuration says


def test_what_means_alike_lies_close(engine: EncoderEngine) -> None:
    """It is a real model: a paraphrase is nearer than a stranger."""
    text, paraphrase, stranger = vectors(
        engine, ["A man is eating food.", "Somebody has a meal.", "Redis stores streams of entries."]
    )
    assert text @ paraphrase > 0.5 > 0.2 > text @ stranger


def test_a_bad_job_costs_its_batch_mates_nothing(engine: EncoderEngine) -> None:
    """Each job gets a value or an error of its own, in order."""
    good, bad, also_good = engine.prepare([("water", {}), ("   ", {}), ("wheel", {"normalize": False})])

    assert isinstance(good, Prepared)
    assert isinstance(also_good, Prepared)
    assert isinstance(bad, ItemError)
    assert bad.code == FailureCode.INVALID_INPUT
    assert len(engine.run([good, also_good])) == 2


def test_int8_says_what_fp32_says(engine: EncoderEngine, fp32_engine: EncoderEngine, sentences: list[str]) -> None:
    """A quarter of the memory and a fraction of the time, for an answer that points the same way."""
    assert len(sentences) >= 200
    cosines = np.sum(vectors(engine, sentences) * vectors(fp32_engine, sentences), axis=1)

    assert cosines.mean() >= 0.99
    assert cosines.min() >= 0.97


def test_engines_are_made_from_a_configuration() -> None:
    """What a service's YAML says of an engine is an `EngineConfig`."""
    echo = make_engine(EngineConfig(kind="echo"))

    assert echo.run([item for item in echo.prepare([("hello", {})]) if isinstance(item, Prepared)]) == ["hello"]
