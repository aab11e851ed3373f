"""The decoder engine: prompts in, texts out, many at once, and each as if it were alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import FailureCode, ModelLoadError
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.engines.decoder import DecoderEngine, Event
from headrace_workers.generation.generation import Generation
from headrace_workers.generation.runner import PAGE_TOKENS
from headrace_workers.generation.speculation import DraftPolicy
from headrace_workers.hosting.model_bytes import resident_bytes
from support.tiny_decoder import TINY_CONTEXT, tiny_decoder

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> DecoderEngine:
    return DecoderEngine(folder, slots=8, prefill_rows=48)


@pytest.fixture(scope="module")
def other(folder: Path) -> DecoderEngine:
    """Another replica, which cuts prompts otherwise."""
    return DecoderEngine(folder, slots=3, prefill_rows=40)


def prepared(engine: DecoderEngine, value: Any, **params: Any) -> Prepared:
    [item] = engine.prepare([(value, params)])
    assert isinstance(item, Prepared), item
    return item


def refusal(engine: DecoderEngine, value: Any, **params: Any) -> ItemError:
    [item] = engine.prepare([(value, params)])
    assert isinstance(item, ItemError)
    return item


def finish(engine: DecoderEngine) -> list[Event]:
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def text_of(generation: Generation) -> str:
    [choice] = generation.output()["choices"]
    return str(choice["text"])


def answer(engine: DecoderEngine, value: Any, *, job_id: str = "job", **params: Any) -> Generation:
    generation: Generation = engine.start(prepared(engine, value, **params), job_id=job_id)
    finish(engine)
    return generation


def idle(engine: DecoderEngine) -> bool:
    """Whether nobody has a page any more."""
    return not engine.busy and engine.pool.held == 0


# -- a first text -------------------------------------------------------------------------------------------


def test_a_prompt_is_continued(engine: DecoderEngine) -> None:
    output = answer(engine, "The mill", max_tokens=12, **GREEDY).output()
    assert output["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14, "cached_tokens": 0}
    [choice] = output["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"]


def test_the_pieces_add_up_to_the_text(engine: DecoderEngine) -> None:
    generation = engine.start(prepared(engine, "Water", max_tokens=40, seed=1, ignore_eos=True), job_id="a")
    events = finish(engine)
    assert [event.ended for event in events] == [False] * 39 + [True]
    assert "".join(event.chunk["text"] for event in events if event.chunk) == text_of(generation)
    assert [event.chunk["n"] for event in events if event.chunk] == list(range(40))


def test_messages_take_the_chat_template(engine: DecoderEngine) -> None:
    item = prepared(engine, {"messages": [{"role": "user", "content": "Why?"}]}, max_tokens=2)
    assert item.tokens > 10
    assert engine.run([item])[0]["usage"]["prompt_tokens"] == item.tokens


def test_the_example_is_answered(engine: DecoderEngine) -> None:
    assert engine.run([prepared(engine, *engine.example()[:1], **engine.example()[1])])[0]["choices"][0]["text"]


def test_several_choices_differ(engine: DecoderEngine) -> None:
    output = answer(engine, "Once", n=3, seed=5, max_tokens=16, ignore_eos=True).output()
    assert [choice["index"] for choice in output["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in output["choices"]}) == 3
    assert output["usage"]["completion_tokens"] == 48


def test_it_ends_with_an_end_token_or_a_stop_string(engine: DecoderEngine) -> None:
    whole = text_of(answer(engine, "A river", max_tokens=32, **GREEDY))
    stop = whole[len(whole) // 2 :][:3]
    stopped = answer(engine, "A river", max_tokens=32, stop=stop, **GREEDY).output()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == whole[: whole.index(stop)]


def test_a_schema_is_followed(engine: DecoderEngine) -> None:
    schema = {"type": "object", "properties": {"wheel": {"type": "boolean"}}, "required": ["wheel"]}
    form = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
    choice = answer(engine, "Answer:", max_tokens=64, temperature=0.5, response_format=form).output()["choices"][0]
    assert set(json.loads(choice["text"])) == {"wheel"}
    assert choice["finish_reason"] == "stop"


def test_logprobs_are_told_of_every_token(engine: DecoderEngine) -> None:
    choice = answer(engine, "Stone", max_tokens=5, logprobs=True, top_logprobs=2, **GREEDY).output()["choices"][0]
    assert len(choice["logprobs"]) == 5
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0 for entry in choice["logprobs"])


# -- in company ---------------------------------------------------------------------------------------------


def crowd(seed: int, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Jobs of all kinds."""
    rng = random.Random(seed)
    words = ["water", "wheel", "mill", "race", "stone", "grain", "flour", "river", "dam", "sluice"]
    jobs = []
    for number in range(count):
        params: dict[str, Any] = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice([0.0, 0.7, 1.3])}
        params |= rng.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"frequency_penalty": 0.5}, {"stop": "the"}])
        jobs.append((" ".join(rng.choices(words, k=rng.randint(1, 70))), {**params, "seed": number}))
    return jobs


def test_a_job_has_the_same_text_alone_and_in_company(engine: DecoderEngine) -> None:
    jobs = crowd(seed=1, count=32)
    together = engine.run([prepared(engine, text, **params) for text, params in jobs])
    alone = [engine.run([prepared(engine, text, **params)])[0] for text, params in jobs]
    assert [output["choices"] for output in together] == [output["choices"] for output in alone]
    assert engine.pool.held == 0


def test_a_cache_too_small_for_all_changes_no_text(engine: DecoderEngine, folder: Path) -> None:
    roomless = DecoderEngine(folder, slots=8, max_tokens=TINY_CONTEXT, kv_cache_bytes=page_bytes(engine) * 18)
    jobs = [(text, {**params, "max_tokens": 120, "ignore_eos": True, "stop": []}) for text, params in crowd(2, 12)]
    expected = engine.run([prepared(engine, text, **params) for text, params in jobs])
    got = roomless.run([prepared(roomless, text, **params) for text, params in jobs])
    assert roomless.scheduler.preemptions > 0
    assert [output["choices"] for output in got] == [output["choices"] for output in expected]
    assert idle(roomless)


def page_bytes(engine: DecoderEngine) -> int:
    pages: int = engine.pool.pages
    return int(engine.info.details["kv_cache_bytes"]) // pages


def test_a_shared_beginning_is_computed_once(folder: Path) -> None:
    fresh = DecoderEngine(folder, slots=8)
    beginning = "water " * 100
    outputs = fresh.run([prepared(fresh, f"{beginning}{n}", max_tokens=4, **GREEDY) for n in range(6)])
    cached = [output["usage"]["cached_tokens"] for output in outputs]
    assert cached[0] == 0
    assert all(tokens >= 100 // PAGE_TOKENS * PAGE_TOKENS for tokens in cached[1:])
    plain = DecoderEngine(folder, slots=8, prefix_cache=False)
    again = plain.run([prepared(plain, f"{beginning}{n}", max_tokens=4, **GREEDY) for n in range(6)])
    assert [output["choices"] for output in again] == [output["choices"] for output in outputs]
    assert not any(output["usage"]["cached_tokens"] for output in again)


# -- interrupted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_what_was_delivered_is_gone_on_with(engine: DecoderEngine, other: DecoderEngine, seed: int) -> None:
    rng = random.Random(seed)
    for number, (text, params) in enumerate(crowd(seed, 8)):
        params = {**params, "n": rng.choice([1, 2])}
        generation = engine.start(prepared(engine, text, **params), job_id=str(number))
        chunks = [event.chunk for event in finish(engine) if event.chunk]
        delivered = chunks[: rng.randint(0, len(chunks))]
        resumed = other.start(prepared(other, text, **params), job_id=str(number), delivered=delivered)
        rest = [event.chunk for event in finish(other) if event.chunk]
        assert resumed.ended
        assert resumed.output()["choices"] == generation.output()["choices"]
        for index in range(params["n"]):
            pieces = [chunk for chunk in delivered + rest if chunk["i"] == index]
            assert sum(len(chunk["tokens"]) for chunk in pieces) == len(generation.choices[index].sequence.generated)
            assert "".join(chunk["text"] for chunk in pieces) == generation.output()["choices"][index]["text"]


def test_what_was_delivered_of_another_job_is_refused(engine: DecoderEngine) -> None:
    item = prepared(engine, "Mill", max_tokens=4)
    with pytest.raises(ItemError, match="delivered before"):
        engine.start(item, job_id="a", delivered=[{"i": 0, "n": 3, "tokens": [5], "text": "x"}])
    assert idle(engine)


def test_a_cancelled_job_leaves_at_once(engine: DecoderEngine) -> None:
    generation = engine.start(prepared(engine, "Dam", max_tokens=400, **GREEDY), job_id="a")
    for _ in range(5):
        engine.step()
    engine.cancel(generation, "deadline")
    assert idle(engine)
    partial = generation.output()
    assert partial["choices"][0]["finish_reason"] == "deadline"
    assert partial["usage"]["completion_tokens"] == 5
    assert engine.step() == []


def test_a_pass_that_fails_costs_its_jobs_and_no_others(engine: DecoderEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = engine.start(prepared(engine, "Sluice", max_tokens=4), job_id="a")
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", lambda _step: 1 / 0)
        [event] = engine.step()
    assert event == Event(generation, None, ended=True)
    assert generation.error is not None
    assert (generation.error.code, generation.error.retryable) == (FailureCode.ENGINE_FAILED, True)
    assert idle(engine)
    assert answer(engine, "Sluice", max_tokens=4).error is None


# -- with a draft -------------------------------------------------------------------------------------------


class Always(DraftPolicy):
    """Guesses whether it pays or not."""

    def drafts(self, sequences: int) -> int:
        return 1 + sequences % 3


@pytest.mark.parametrize("layers", [2, 1])
def test_a_draft_changes_no_text(engine: DecoderEngine, folder: Path, tmp_path: Path, layers: int) -> None:
    """One that is the model itself, which is always right, and one that hardly ever is."""
    draft = folder if layers == 2 else tiny_decoder(tmp_path, num_hidden_layers=layers)
    guessing = DecoderEngine(folder, slots=8, prefill_rows=48, draft=str(draft))
    assert guessing._draft is not None
    guessing._draft.policy = Always()
    jobs = crowd(seed=4, count=24)
    expected = engine.run([prepared(engine, text, **params) for text, params in jobs])
    generations = [
        guessing.start(prepared(guessing, text, **params), job_id=str(number))
        for number, (text, params) in enumerate(jobs)
    ]
    while guessing.busy:
        guessing.step()
    assert [generation.output()["choices"] for generation in generations] == [output["choices"] for output in expected]
    guessed, right = guessing.guesses
    share = right / guessed
    assert share > 0.8 if layers == 2 else share < 0.5
    assert idle(guessing)
    assert guessing._draft._pool.held == 0


def test_a_draft_of_another_vocabulary_is_refused(folder: Path, minilm: Path) -> None:
    with pytest.raises(ModelLoadError, match="other tokens"):
        DecoderEngine(folder, draft=str(minilm))


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "params", "code", "said"),
    [
        ("", {}, FailureCode.INVALID_INPUT, "empty"),
        (7, {}, FailureCode.INVALID_INPUT, "neither a prompt nor messages"),
        ([{"role": "wizard", "content": "x"}], {}, FailureCode.INVALID_INPUT, "wizard"),
        ("x", {"max_tokens": 0}, FailureCode.INVALID_PARAMS, "max_tokens"),
        ("x", {"max_tokens": 10**9}, FailureCode.INVALID_PARAMS, "max_tokens"),
        ("x", {"temprature": 1.0}, FailureCode.INVALID_PARAMS, "temprature"),
        ("water " * 600, {}, FailureCode.INPUT_TOO_LONG, "context has 512"),
        (
            "x",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
            FailureCode.INVALID_PARAMS,
            "schema",
        ),
    ],
)
def test_bad_input_is_refused_by_name(
    engine: DecoderEngine, value: Any, params: dict[str, Any], code: FailureCode, said: str
) -> None:
    error = refusal(engine, value, **params)
    assert error.code == code
    assert said in error.message


def test_an_overlong_prompt_can_lose_its_beginning(folder: Path) -> None:
    cutting = DecoderEngine(folder, slots=1, overlong="truncate")
    assert prepared(cutting, "water " * 600, max_tokens=12).tokens == TINY_CONTEXT - 12
    assert refusal(cutting, "water " * 600, truncate=False).code == FailureCode.INPUT_TOO_LONG


def test_a_cache_without_room_for_one_sequence_is_refused(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="kv_cache_bytes"):
        DecoderEngine(folder, kv_cache_bytes=1000)


# -- for a long time ----------------------------------------------------------------------------------------


def test_nothing_is_left_after_many_jobs_with_random_cancels(engine: DecoderEngine) -> None:
    rng = random.Random(3)
    running: list[Generation] = []
    for number in range(300):
        text = "mill " * rng.randint(1, 60)
        running.append(engine.start(prepared(engine, text, max_tokens=rng.randint(1, 30)), job_id=str(number)))
        for _ in range(rng.randint(0, 3)):
            engine.step()
        if rng.random() < 0.3:
            engine.cancel(running.pop(rng.randrange(len(running))))
        running = [generation for generation in running if not generation.ended]
        assert engine.pool.held <= engine.pool.pages
    finish(engine)
    assert idle(engine)
    assert engine.pool.available == engine.pool.pages


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_does_not_grow_over_ten_thousand_jobs(folder: Path) -> None:
    """A fifth of them cancelled at random: pages stay within their bound, the process as large as it was early on."""
    engine = DecoderEngine(folder, slots=16, prefill_rows=64)
    rng, jobs, early_bytes = random.Random(9), 10_000, 0
    running: list[Generation] = []
    for number in range(jobs):
        item = prepared(engine, "mill " * rng.randint(1, 60), max_tokens=rng.randint(1, 30))
        running.append(engine.start(item, job_id=str(number)))
        while len(running) > 24 or rng.random() < 0.5:
            engine.step()
            assert engine.pool.held <= engine.pool.pages
            running = [generation for generation in running if not generation.ended]
        if running and rng.random() < 0.2:
            engine.cancel(running.pop(rng.randrange(len(running))))
        if number == jobs // 5:
            early_bytes = resident_bytes()
    finish(engine)
    assert idle(engine)
    assert engine.pool.available == engine.pool.pages
    assert resident_bytes() - early_bytes < 4 << 20
