"""How a token is drawn: by its job's rules and one number of its own, whatever else is in the step."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import read_generation_params
from headrace_workers.generation.sampling import Draw, Drawn, Sampler, seed_of, uniform
from headrace_workers.generation.text import TokenSpelling

VOCABULARY = 49_152
SOME: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 40},
    {"top_k": 400, "top_p": 0.8},
    {"top_p": 0.9, "temperature": 0.8},
    {"min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.01, "frequency_penalty": 0.5},
    {"temperature": 0, "presence_penalty": 1.5, "logprobs": True, "top_logprobs": 3},
]


@pytest.fixture(scope="module")
def sampler(spelling: TokenSpelling) -> Sampler:
    return Sampler(VOCABULARY, spelling)


@pytest.fixture(scope="module")
def few(spelling: TokenSpelling) -> Sampler:
    return Sampler(8, spelling)


def _draw(job: int = 0, /, **params: Any) -> Draw:
    return Draw(read_generation_params(params), job_id=f"job {job}")


def _drawn(sampler: Sampler, logits: Tensor, draw: Draw) -> Drawn:
    (drawn,) = sampler.draw(logits[None] if logits.dim() == 1 else logits, [draw])
    assert isinstance(drawn, Drawn)
    return drawn


def _logits(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def _shares(sampler: Sampler, logits: list[float], draws: int = 4000, **params: Any) -> NDArray[np.float64]:
    """How often each token is drawn."""
    row, draw = torch.tensor(logits), _draw(**params)
    counts = Counter(_drawn(sampler, row, draw).token for _ in range(draws))
    return np.array([counts[token] for token in range(len(logits))]) / draws


def _log(*shares: float) -> list[float]:
    return [math.log(share) if share else -math.inf for share in shares]


# -- in use --------------------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_most_probable(sampler: Sampler) -> None:
    logits = _logits(4)
    drawn = sampler.draw(logits, [_draw(temperature=0) for _ in range(4)])
    assert [token.token for token in drawn if isinstance(token, Drawn)] == logits.argmax(1).tolist()


def test_the_same_seed_draws_the_same_tokens(sampler: Sampler) -> None:
    logits = _logits(20)
    first, again, other = (Draw(read_generation_params({"seed": seed}), job_id="any") for seed in (7, 7, 8))
    tokens = [[_drawn(sampler, row, draw).token for row in logits] for draw in (first, again, other)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_job_without_a_seed_has_one_by_its_id(few: Sampler) -> None:
    assert seed_of("a") == seed_of("a") != seed_of("b")
    assert _draw(3).seed == seed_of("job 3")


def test_answers_of_one_job_differ(sampler: Sampler) -> None:
    row = torch.zeros(VOCABULARY)
    draws = [Draw(read_generation_params({"seed": 7}), job_id="any", choice=choice) for choice in range(4)]
    assert len({_drawn(sampler, row, draw).token for draw in draws}) == 4


def test_logprobs_are_the_models_own(few: Sampler, spelling: TokenSpelling) -> None:
    draw = _draw(temperature=0.5, logprobs=True, top_logprobs=2)
    told = _drawn(few, torch.tensor(_log(0, 0, 0.25, 0.5, 0.25, 0, 0, 0)), draw).logprobs
    assert told is not None
    assert [top["logprob"] for top in told["top_logprobs"]] == pytest.approx([math.log(0.5), math.log(0.25)])
    assert [top["bytes"] for top in told["top_logprobs"]] == [list(spelling.literally(token)) for token in (3, 2)]
    assert told["token"] in ("<|im_end|>", "<repo_name>", "<reponame>")


# -- by itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", SOME)
def test_a_row_gives_the_same_alone_and_among_31_others(sampler: Sampler, params: dict[str, Any]) -> None:
    logits = _logits(32)
    crowd = [_draw(row, **(params if row == 17 else SOME[row % len(SOME)])) for row in range(32)]
    alone = _draw(17, **params)
    for draw in (*crowd, alone):
        for token in (5, 5, 9):
            draw.advance(token)
    together = sampler.draw(logits, crowd)
    assert together[17] == _drawn(sampler, logits[17].clone(), alone)


def test_another_replica_goes_on_with_the_same_tokens(sampler: Sampler) -> None:
    params: dict[str, Any] = {"frequency_penalty": 1.0, "top_p": 0.99}
    logits = _logits(12)
    whole = [_drawn(sampler, row, draw).token for draw in [_draw(**params)] for row in logits]
    resumed = _draw(**params)
    for token in whole[:5]:
        resumed.advance(token)
    assert [_drawn(sampler, row, resumed).token for row in logits[5:]] == whole[5:]


def test_logits_are_left_as_they_were(sampler: Sampler) -> None:
    logits = _logits(len(SOME))
    draws = [_draw(**params) for params in SOME]
    for draw in draws:
        draw.advance(3)
    before = logits.clone()
    sampler.draw(logits, draws)
    assert torch.equal(logits, before)


def test_the_number_behind_a_token_stays_what_it_is() -> None:
    """Streams that were begun by another version of this file go on as they began."""
    assert [uniform(1, 0, position) for position in range(3)] == [
        0.2784204666282265,
        0.7035081319841522,
        0.2821656067408883,
    ]
    assert uniform(-1, 0, 0) != uniform(1, 0, 0) != uniform(1, 1, 0)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 15), st.integers(0, 1 << 20))
def test_the_number_is_from_zero_to_below_one(seed: int, choice: int, position: int) -> None:
    assert 0 <= uniform(seed, choice, position) < 1


def test_the_numbers_are_uniform() -> None:
    numbers = np.sort([uniform(3, 0, position) for position in range(20_000)])
    assert np.abs(numbers - np.arange(20_000) / 20_000).max() < 0.012  # Kolmogorov and Smirnov, at a level of 0.5 %


# -- distributions -------------------------------------------------------------------------------------------


def test_tokens_come_as_often_as_they_are_probable(few: Sampler) -> None:
    shares = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0, 0]
    assert _shares(few, _log(*shares)) == pytest.approx(np.array(shares), abs=0.03)


def test_a_large_vocabulary_is_drawn_from_evenly(sampler: Sampler) -> None:
    """Tokens far apart, one of them the last, that share all probability."""
    row = torch.full((VOCABULARY,), -math.inf)
    row[[0, 255, 256, 30_000, VOCABULARY - 1]] = 0.0
    draw = _draw()
    counts = Counter(_drawn(sampler, row, draw).token for _ in range(2000))
    assert set(counts) == {0, 255, 256, 30_000, VOCABULARY - 1}
    assert min(counts.values()) > 320


def test_temperature_sharpens(few: Sampler) -> None:
    squared = np.array([0.64, 0.16, 0.04, 0.16, 0, 0, 0, 0])
    shares = _shares(few, _log(0.4, 0.2, 0.1, 0.2, 0, 0, 0, 0), temperature=0.5)
    assert shares == pytest.approx(squared / squared.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {2, 0}),
        ({"top_k": 3}, {2, 0, 1}),  # tokens 1 and 3 are equally probable: the lower stays
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.1}, {2}),
        ({"top_p": 0.39}, {2}),
        ({"top_p": 0.41}, {2, 0}),
        ({"top_p": 0.99}, {0, 1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.55}, {2}),  # 0.4 of the 0.7 that top_k leaves is 0.57
        ({"top_k": 2, "top_p": 0.6}, {2, 0}),
        ({"min_p": 0.3}, {2, 0, 1, 3}),
        ({"min_p": 0.5}, {2, 0}),
        ({"min_p": 1}, {2}),
        ({"min_p": 0.3, "top_p": 0.5}, {2, 0}),
        ({"temperature": 1e-6}, {2}),
        ({"temperature": 1e-4}, {2}),
    ],
)
def test_filters_leave_the_most_probable(few: Sampler, params: dict[str, Any], left: set[int]) -> None:
    shares = _shares(few, _log(0.3, 0.125, 0.4, 0.125, 0.05, 0, 0, 0), draws=400, **params)
    assert set(np.flatnonzero(shares)) == left


@given(st.integers(0, 1 << 30), st.sampled_from([0.3, 1.0, 3.0, 12.0]), st.floats(0.01, 0.999))
def test_a_nucleus_is_the_same_however_it_is_found(sampler: Sampler, seed: int, spread: float, top_p: float) -> None:
    """It is looked for among few tokens first: against sorting all of them."""
    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    shares = np.sort(torch.softmax(row.double(), 0).numpy())[::-1]
    least = shares[min(int(np.cumsum(shares).searchsorted(top_p)) + 1, VOCABULARY - 1)]
    token = _drawn(sampler, row, _draw(seed, top_p=top_p)).token
    assert torch.softmax(row.double(), 0)[token] >= least * (1 - 1e-6)


def test_penalties_count_what_was_generated(few: Sampler) -> None:
    row = torch.tensor([2.0, 1.0, 0.9, 0, 0, 0, 0, 0])
    once = _draw(temperature=0, presence_penalty=1.05)
    assert [_drawn(few, row, once).token for _ in range(4)] == [0, 1, 0, 0]
    often = _draw(temperature=0, frequency_penalty=0.6)
    assert [_drawn(few, row, often).token for _ in range(5)] == [0, 0, 1, 2, 0]


# -- edges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", SOME[:4])
def test_a_row_that_is_not_finite_fails_alone(sampler: Sampler, bad: float, params: dict[str, Any]) -> None:
    logits = _logits(3)
    logits[1, 40_000] = bad
    first, second, third = sampler.draw(logits, [_draw(**params) for _ in range(3)])
    assert isinstance(first, Drawn)
    assert isinstance(third, Drawn)
    assert isinstance(second, ItemError)
    assert second.code is FailureCode.NOT_FINITE


def test_a_row_without_any_token_fails(few: Sampler) -> None:
    (drawn,) = few.draw(torch.full((1, 8), -math.inf), [_draw()])
    assert isinstance(drawn, ItemError)


@pytest.mark.parametrize("params", SOME)
def test_masked_logits_are_never_drawn(sampler: Sampler, params: dict[str, Any]) -> None:
    """Padded vocabularies hold negative infinity, or the least number there is."""
    for least in (-math.inf, torch.finfo(torch.float32).min):
        row = torch.full((VOCABULARY,), least)
        row[[11, 12]] = 3.0
        draw = _draw(**params)
        assert {_drawn(sampler, row, draw).token for _ in range(30)} <= {11, 12}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("params", SOME)
def test_rows_on_a_gpu_give_the_same(sampler: Sampler, params: dict[str, Any]) -> None:
    logits = _logits(4)
    drawn = [sampler.draw(rows, [_draw(at, **params) for at in range(4)]) for rows in (logits, logits.cuda())]
    assert drawn[0] == drawn[1]
