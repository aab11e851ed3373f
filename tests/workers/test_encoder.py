"""The encoder engine at its edges: every bad input, every parameter, and answers that no company changes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.errors import FailureCode, ModelLoadError
from headrace.messages import Tensor
from headrace_workers import ItemError, Prepared
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.kernels.library import Isa


def prepared(engine: EncoderEngine, texts: list[str], **params: Any) -> list[Prepared]:
    items = [item for item in engine.prepare([(text, params) for text in texts]) if isinstance(item, Prepared)]
    assert len(items) == len(texts)
    return items


def refusal(engine: EncoderEngine, value: Any, **params: Any) -> ItemError:
    (item,) = engine.prepare([(value, params)])
    assert isinstance(item, ItemError)
    return item


def long_text(words: int) -> str:
    return "water " * words


# -- the same bits in any company ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_the_same_bits_alone_and_in_any_batch(
    seed: int, engine: EncoderEngine, sentences: list[str]
) -> None:
    """Whatever its batch mates, its place, and the pass that it falls into."""
    chooser = random.Random(seed)
    mates = chooser.sample(sentences, 24)
    alone = [engine.run([item])[0].data for item in prepared(engine, mates)]

    together = engine.run(prepared(engine, mates))

    assert [answer.data for answer in together] == alone


def test_an_answer_does_not_depend_on_how_passes_are_cut(
    minilm: Path, engine: EncoderEngine, sentences: list[str]
) -> None:
    narrow = EncoderEngine(minilm, max_tokens_per_pass=50, kernels="int8")
    texts = sentences[:30]

    in_small_passes = narrow.run(prepared(narrow, texts))

    assert [a.data for a in in_small_passes] == [a.data for a in engine.run(prepared(engine, texts))]


def test_an_answer_does_not_depend_on_the_number_of_threads(
    engine: EncoderEngine, sentences: list[str], threads: Callable[[int], None]
) -> None:
    items = prepared(engine, sentences[:20])
    one = [answer.data for answer in engine.run(items)]

    threads(2)

    assert [answer.data for answer in engine.run(items)] == one


def test_all_instruction_sets_give_the_same_answers(
    minilm: Path, engine: EncoderEngine, sentences: list[str], isa: Isa
) -> None:
    """Bit for bit between ours. On torch's kernels the last digits of a GELU differ, and move some values by a step."""
    other = EncoderEngine(minilm, kernels="int8")
    ours, theirs = (one.run(prepared(one, sentences[:12])) for one in (engine, other))

    assert other.info.details["isa"] == isa
    if isa is Isa.NONE:
        assert other.info.details["isa_reason"] == "HEADRACE_ISA=none"
        assert other.info.details["blocks"]["fused_blocks"] == 0
        cosines = [float(a.numpy() @ b.numpy()) for a, b in zip(ours, theirs, strict=True)]
        assert min(cosines) > 0.99
    else:
        assert [answer.data for answer in ours] == [answer.data for answer in theirs]


def test_preparing_and_running_may_happen_at_once(engine: EncoderEngine, sentences: list[str]) -> None:
    """The next batch is tokenized on another thread while this one runs."""
    expected = [answer.data for answer in engine.run(prepared(engine, sentences[:40]))]
    failures: list[BaseException] = []

    def prepare_again() -> None:
        try:
            for _ in range(20):
                prepared(engine, sentences[40:80])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=prepare_again)
    thread.start()
    for _ in range(3):
        assert [answer.data for answer in engine.run(prepared(engine, sentences[:40]))] == expected
    thread.join()
    assert failures == []


def test_running_on_another_thread_gives_the_same_answer(engine: EncoderEngine, sentences: list[str]) -> None:
    """A replica computes on a thread that did not load the model."""
    items = prepared(engine, sentences[:10])
    expected = [answer.data for answer in engine.run(items)]
    got: list[bytes] = []

    thread = threading.Thread(target=lambda: got.extend(answer.data for answer in engine.run(items)))
    thread.start()
    thread.join()

    assert got == expected


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "missing"),
        (7, "a number"),
        (1.5, "a number"),
        (True, "a number"),
        (b"bytes", "bytes"),
        (["a", "list"], "a list"),
        ({"a": "map"}, "a map"),
        ("", "empty"),
        (" \n\t\u2003 ", "empty"),
        ("half a pair \ud800", "not Unicode"),
    ],
)
def test_what_is_no_text_is_refused_by_name(engine: EncoderEngine, value: Any, said: str) -> None:
    error = refusal(engine, value)

    assert error.code == FailureCode.INVALID_INPUT
    assert said in error.message
    assert not error.retryable


def test_a_text_that_is_too_long_is_refused_with_its_length(engine: EncoderEngine) -> None:
    error = refusal(engine, long_text(300))

    assert error.code == FailureCode.INPUT_TOO_LONG
    assert error.message == "the text has 302 tokens; the model takes 256"
    assert '"truncate": true' in error.hint


def test_a_job_may_have_its_text_cut(engine: EncoderEngine) -> None:
    """What is left is what the model can take, closed as a text should be."""
    (cut,) = prepared(engine, [long_text(300)], truncate=True)
    (exact,) = prepared(engine, [long_text(254)])

    assert cut.tokens == exact.tokens == 256
    assert [a.data for a in engine.run([cut])] == [a.data for a in engine.run([exact])]


def test_a_service_may_cut_by_default_and_a_job_refuse_it(minilm: Path) -> None:
    engine = EncoderEngine(minilm, overlong="truncate", max_tokens=16, kernels="int8")

    assert prepared(engine, [long_text(50)])[0].tokens == 16
    assert refusal(engine, long_text(50), truncate=False).code == FailureCode.INPUT_TOO_LONG


def test_a_limit_never_exceeds_the_models_own_positions(minilm: Path) -> None:
    assert EncoderEngine(minilm, max_tokens=100_000, kernels="int8").info.details["max_tokens"] == 512


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temperature": 1.0}, "parameter 'temperature' is not known"),
        ({"truncate": "yes"}, "parameter 'truncate' is wrong"),
        ({"normalize": 1}, "parameter 'normalize' is wrong"),
        ({"top_k": 3}, "parameter 'top_k' is not known"),
    ],
)
def test_a_wrong_parameter_is_refused_with_those_that_are_known(
    engine: EncoderEngine, params: dict[str, Any], said: str
) -> None:
    error = refusal(engine, "water", **params)

    assert error.code == FailureCode.INVALID_PARAMS
    assert said in error.message
    assert error.hint == "known parameters: normalize, truncate"


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "all"])
def test_a_parameter_out_of_its_range_is_refused(tiny_model: Callable[..., Path], top_k: Any) -> None:
    engine = EncoderEngine(tiny_model("Bert", "ForSequenceClassification"), precision="fp32")

    assert refusal(engine, "the mill", top_k=top_k).code == FailureCode.INVALID_PARAMS


def test_a_text_of_any_script_has_an_answer(engine: EncoderEngine) -> None:
    for text in ("日本語のテキスト", "🦆", "a" * 5000, "\u0000 null", "שלום", "e\u0301"):
        (answer,) = engine.run(prepared(engine, [text], truncate=True))
        assert np.isfinite(answer.numpy()).all()


def test_an_answer_that_is_not_finite_is_an_error_of_that_job_alone(minilm: Path, sentences: list[str]) -> None:
    """Sabotage: one word's vector is NaN."""
    engine = EncoderEngine(minilm, kernels="int8")
    expected = [answer.data for answer in engine.run(prepared(engine, sentences[:3]))]
    (word,) = prepared(engine, ["duck"])
    table = engine._runner._model.module.get_submodule("embeddings.word_embeddings")  # type: ignore[attr-defined]
    table.scale[word.data.tokens.ids[1]] = torch.nan

    first, poisoned, second, third = engine.run(
        prepared(engine, [sentences[0], "a duck swims", sentences[1], sentences[2]])
    )

    assert isinstance(poisoned, ItemError)
    assert poisoned.code == FailureCode.NOT_FINITE
    assert [first.data, second.data, third.data] == expected


def test_nothing_to_do_is_no_problem(engine: EncoderEngine) -> None:
    assert engine.prepare([]) == []
    assert engine.run([]) == []


# -- parameters ----------------------------------------------------------------------------------------------


def test_a_job_decides_on_the_length_of_its_vector(engine: EncoderEngine) -> None:
    plain, scaled = engine.run(prepared(engine, ["water"], normalize=False) + prepared(engine, ["water"]))

    length = float(np.linalg.norm(plain.numpy()))
    assert abs(length - 1) > 0.1
    np.testing.assert_allclose(plain.numpy() / length, scaled.numpy(), rtol=1e-5)


# -- loading -------------------------------------------------------------------------------------------------


def test_an_engine_tells_what_it_is(engine: EncoderEngine) -> None:
    info = engine.info

    assert (info.variant, info.task, info.device) == ("int8", "embedding", "cpu")
    assert info.load_s > 0
    assert info.details["packed"]
    assert info.details["batch_invariant"]
    assert info.details["max_tokens"] == 256
    assert info.details["pooling"] == "mean, normalize"
    assert info.details["quantized"]["bytes_after"] < 0.3 * info.details["quantized"]["bytes_before"]


def test_an_engine_answers_its_own_example(engine: EncoderEngine) -> None:
    text, params = engine.example()

    (answer,) = engine.run(prepared(engine, [text], **params))

    assert isinstance(answer, Tensor)


def test_no_weight_stays_in_full_precision(engine: EncoderEngine) -> None:
    """What is left of 90 MB: small tables and norms; int8 lives in the kernels' own memory."""
    module = engine._runner._model.module  # type: ignore[attr-defined]
    left = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())

    assert left < 1_000_000


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelLoadError, match="there is no folder '/no/such/model'"):
        EncoderEngine("/no/such/model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        EncoderEngine(tmp_path)


def test_a_broken_configuration_is_an_error_of_ours(tmp_path: Path, minilm: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such make"}')
    with pytest.raises(ModelLoadError, match="no configuration that transformers knows"):
        EncoderEngine(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError):
        EncoderEngine(tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path: Path, minilm: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelLoadError, match="must be safetensors, not pickles"):
        EncoderEngine(tmp_path)


def test_a_model_without_a_tokenizer_is_named(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("Bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        EncoderEngine(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="not a tokenizer"):
        EncoderEngine(folder)


def test_a_tokenizer_is_made_of_a_vocabulary_where_there_is_no_other(minilm: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(minilm / name)

    converted = EncoderEngine(tmp_path, precision="fp32")

    ids = converted.prepare([("The wheel turns, slowly.", {})])[0]
    assert isinstance(ids, Prepared)
    assert ids.data.tokens.ids.tolist() == [101, 1996, 5217, 4332, 1010, 3254, 1012, 102]
