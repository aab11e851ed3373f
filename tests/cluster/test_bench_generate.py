"""`headrace bench generate`: the workload that everybody is given, and the programs that take part."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_cluster.bench import peers
from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_draft import measure_draft
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Subject
from headrace_cluster.bench.generate_workload import mixed_workload, prefixed_workload, windows
from headrace_cluster.bench.models import packaged_encoder
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import TextTokenizer, load_tokenizer
from support.tiny_decoder import tiny_decoder

PROGRAM = """
import os, sys, time
sys.path.insert(0, {folder!r})
from json_lines import answer_lines

def add(one, other):
    print("a library says something")
    return {{"sum": one + other}}

def die():
    sys.exit("out of oil")

def sleep():
    time.sleep(600)

def pid():
    return {{"pid": os.getpid()}}

answer_lines({{"add": add, "die": die, "sleep": sleep, "pid": pid}})
"""


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(find_source(packaged_encoder()), 1 << 20)


@pytest.fixture
def command(tmp_path: Path) -> list[str | Path]:
    """A program that talks as the peers do."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(Path(peers.__file__).parent)))
    return [sys.executable, program]


def test_everybody_is_given_the_same(tokenizer: TextTokenizer) -> None:
    """Prompts of mixed lengths, as texts and as tokens, and how many tokens each is to be answered with."""
    workload = mixed_workload(tokenizer, 32, number=1)
    assert workload == mixed_workload(tokenizer, 32, number=1)
    assert [len(ids) for ids in workload.ids] == tokenizer.lengths(workload.prompts)
    assert all(8 <= tokens <= 128 for tokens in workload.new_tokens)
    assert workload.tokens == sum(workload.new_tokens)


def test_no_round_can_reuse_another_ones_prompts(tokenizer: TextTokenizer) -> None:
    """They begin with another number, and are the same behind it."""
    one, other = (mixed_workload(tokenizer, 8, number=number) for number in (1, 2))
    assert [prompt.split(". ", 1)[0] for prompt in one.prompts + other.prompts] == ["1"] * 8 + ["2"] * 8
    assert [prompt[1:] for prompt in one.prompts] == [prompt[1:] for prompt in other.prompts]
    assert one.new_tokens == other.new_tokens


def test_a_part_of_a_workload(tokenizer: TextTokenizer) -> None:
    whole = mixed_workload(tokenizer, 16, number=1)
    part = whole.first(4, longest_answer=10)
    assert part.prompts == whole.prompts[:4]
    assert part.new_tokens == [min(10, tokens) for tokens in whole.new_tokens[:4]]


def test_a_shared_prefix(tokenizer: TextTokenizer) -> None:
    """Of about as many tokens as asked for; behind it every prompt has words of its own."""
    workload = prefixed_workload(tokenizer, 8, prefix_tokens=100, new_tokens=16, number=3)
    shared = next(at for at, tokens in enumerate(zip(*workload.ids, strict=False)) if len(set(tokens)) > 1)
    assert 95 <= shared <= 110
    assert len({tuple(ids[shared:-1]) for ids in workload.ids}) == 8
    assert workload.new_tokens == [16] * 8
    assert workload.prompts[0].startswith("3. ")


def test_windows_of_held_out_text(tokenizer: TextTokenizer) -> None:
    """All of one length, none of them overlapping another."""
    found = windows(tokenizer, tokens=1000, window=100)
    assert [len(window) for window in found] == [100] * 10
    assert len({tuple(window) for window in found}) == 10


def test_what_a_draft_gains(tmp_path: Path) -> None:
    """One that is the model itself is always right, costs as much as it saves, and changes no answer."""
    path = tiny_decoder(tmp_path)
    source = find_source(path)
    subject = Subject(str(path), source, load_tokenizer(source, 1 << 20))
    report, plan = GenerateReport(), GeneratePlan.quick(None, draft=str(path))

    # Long enough that guessing is tried again where it was found not to pay, which is the machine's to say.
    measure_draft(subject, replace(plan, single_tokens=32, draft_jobs=8), report, lambda _words: None)

    assert report.draft_speedup is not None
    assert report.draft_speedup > 0
    assert report.draft_guessed
    assert report.draft_right == pytest.approx(1, abs=0.5)  # what is guessed beyond an answer's end counts as wrong
    assert report.draft_changed == 0


def test_a_contestant_answers(command: list[str | Path]) -> None:
    """Line by line; what its libraries print is not taken for an answer."""
    with Contestant(command) as contestant:
        assert contestant.ask("add", one=1, other=2) == {"sum": 3}
        assert contestant.ask("add", one=3, other=4) == {"sum": 7}


def test_a_contestant_that_dies(command: list[str | Path]) -> None:
    """Whoever asked is told its last words, and so is whoever asks again."""
    with Contestant(command) as contestant:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"program\.py did not answer 'die':\nout of oil"):
                contestant.ask("die")


def test_a_contestant_that_hangs(command: list[str | Path]) -> None:
    with Contestant(command, timeout_s=1) as contestant, pytest.raises(RuntimeError, match="did not answer 'sleep'"):
        contestant.ask("sleep")


def test_a_contestant_ends_with_its_context(command: list[str | Path]) -> None:
    with Contestant(command) as contestant:
        pid = contestant.ask("pid")["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
