"""Checks of a runner on made-up prompts: does it answer as the module does, in whatever pieces and company?

Asked at every load, since an architecture cannot be looked up, and a wrong one would answer fluently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace_workers.generation.key_value_pages import KeyValuePages, LayerShape
from headrace_workers.generation.paged_attention import Rules, plan_pass
from headrace_workers.generation.runner import PAGE_TOKENS, DecoderRunner, Step

__all__ = [
    "Cuts",
    "allocate_for",
    "attends_exactly",
    "distance",
    "greedy",
    "halves",
    "is_exact",
    "last_by_one",
    "logits_by_module",
    "logits_by_runner",
    "probes_of",
]

_PROBE_TOKENS: Final = (3, 41, 70)
_LONGEST_PROBE: Final = 600
_CROWD_ROWS: Final = 300
"""More rows than a step usually has."""
_ASKED: Final = (0, 1, 2, 30, 31, 32, 33, 40)
"""Positions whose logits are compared, besides a probe's last three: around where pages begin."""

Cuts = Callable[[int], Sequence[int]]
"""How many rows each step computes of a sequence of so many tokens."""


def probes_of(vocabulary: int, max_positions: int, windows: Sequence[int] = ()) -> list[NDArray[np.int32]]:
    """Prompts to try a model with: short ones, some longer than a page, one longer than its window if that is short."""
    random = np.random.default_rng(7)
    beyond = [window + PAGE_TOKENS + 1 for window in windows if window + PAGE_TOKENS < _LONGEST_PROBE]
    lengths = [min(tokens, max_positions) for tokens in (*_PROBE_TOKENS, *beyond[:1])]
    return [random.integers(0, vocabulary, tokens, dtype=np.int32) for tokens in lengths]


def _asked(tokens: int) -> list[int]:
    return sorted({at for at in (*_ASKED, tokens - 3, tokens - 2, tokens - 1) if 0 <= at < tokens})


@torch.inference_mode()
def logits_by_module(module: nn.Module, probes: Sequence[NDArray[np.int32]]) -> list[Tensor]:
    """What a module itself answers at some positions of each probe: float32 [positions, vocabulary]."""
    answers = []
    for probe in probes:
        ids = torch.from_numpy(probe.astype(np.int64))[None]
        answers.append(module(input_ids=ids, use_cache=False).logits[0, _asked(len(probe))].float())
    return answers


def allocate_for(runner: DecoderRunner, probes: Sequence[NDArray[np.int32]]) -> None:
    """Make room for probes, side by side."""
    runner.allocate(sum(-(-len(probe) // PAGE_TOKENS) for probe in probes))


def logits_by_runner(runner: DecoderRunner, probes: Sequence[NDArray[np.int32]], cuts: Cuts) -> list[Tensor]:
    """What a runner answers at the same positions, all probes together, cut into steps; pages are there already."""
    pages, rows = _pages_of(probes), [list[Tensor]() for _ in probes]
    pending = [(at, _spans(cuts(len(probe)))) for at, probe in enumerate(probes)]
    while pending:
        now = [(at, spans.pop(0)) for at, spans in pending]
        step, owners = _step(probes, pages, now)
        for owner, row in zip(owners, runner.run(step).cpu().clone(), strict=True):
            rows[owner].append(row)
        pending = [(at, spans) for at, spans in pending if spans]
    return [torch.stack(one) for one in rows]


def _pages_of(probes: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """[probes, most pages], all different and in no order."""
    counts = [-(-len(probe) // PAGE_TOKENS) for probe in probes]
    free = iter(np.random.default_rng(1).permutation(sum(counts)).tolist())
    pages = np.full((len(probes), max(counts)), -1, np.int32)
    for row, count in zip(pages, counts, strict=True):
        row[:count] = [next(free) for _ in range(count)]
    return pages


def _spans(counts: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(counts).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _step(
    probes: Sequence[NDArray[np.int32]], pages: NDArray[np.int32], now: Sequence[tuple[int, tuple[int, int]]]
) -> tuple[Step, list[int]]:
    """A step that computes a span of each of some probes, and whose rows its logits are."""
    starts = np.cumsum([0, *(end - first for _, (first, end) in now)]).astype(np.int32)
    asked = [
        (at, start + position - first)
        for (at, (first, end)), start in zip(now, starts[:-1].tolist(), strict=True)
        for position in _asked(len(probes[at]))
        if first <= position < end
    ]
    step = Step(
        tokens=np.concatenate([probes[at][first:end] for at, (first, end) in now]),
        starts=starts,
        positions=np.array([first for _, (first, _) in now], np.int32),
        pages=pages[[at for at, _ in now]],
        wanted=np.array([row for _, row in asked], np.int32),
    )
    return step, [at for at, _ in asked]


def distance(answers: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest relative distance between two answers for a probe."""
    pairs = zip(answers, others, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)


def is_exact(runner: DecoderRunner, probes: Sequence[NDArray[np.int32]]) -> bool:
    """Whether every probe gets the same bits alone and whole, in company, in a crowd, and cut at random."""
    random = np.random.default_rng(3)
    crowd = list(probes) * -(-_CROWD_ROWS // sum(map(len, probes)))
    alone = []
    for probe in probes:
        allocate_for(runner, [probe])
        alone += logits_by_runner(runner, [probe], _whole)
    allocate_for(runner, crowd)
    ways: list[tuple[Sequence[NDArray[np.int32]], Cuts]] = [
        (probes, _whole),
        (probes, lambda tokens: _random_cuts(tokens, random)),
        (crowd, _whole),
        (crowd, last_by_one),
    ]
    others = [logits_by_runner(runner, some, cuts) for some, cuts in ways]
    return all(torch.equal(a, b) for other in others for a, b in zip(other, cycle(alone), strict=False))


def _random_cuts(tokens: int, random: np.random.Generator) -> list[int]:
    at = np.sort(random.integers(0, tokens + 1, 5))
    return [count for count in np.diff([0, *at, tokens]).tolist() if count]


def last_by_one(tokens: int) -> list[int]:
    """Cut so that most of it is a prompt and the rest comes one by one, as an answer grows."""
    ones = min(tokens - 1, 3)
    return [tokens - ones, *[1] * ones]


def halves(tokens: int) -> list[int]:
    """Cut in two."""
    return [count for count in (tokens // 2, tokens - tokens // 2) if count]


def _whole(tokens: int) -> list[int]:
    return [tokens]


def greedy(runner: DecoderRunner, prompt: NDArray[np.int32], tokens: int) -> tuple[list[int], bool]:
    """What a runner says on a prompt, and whether all logits on the way were finite."""
    length = min(len(prompt) + tokens, runner.info.max_positions)
    room = np.zeros(length, np.int32)
    room[: len(prompt)] = prompt
    allocate_for(runner, [room])
    pages = _pages_of([room])
    first, end, said, finite = 0, len(prompt), list[int](), True
    while end < length:
        step = Step(*_one(room, first, end), pages=pages, wanted=np.array([end - first - 1], np.int32))
        logits = runner.run(step)
        finite = finite and bool(torch.isfinite(logits).all())
        said.append(int(logits[0].argmax()))
        room[end] = said[-1]
        first, end = end, end + 1
    return said, finite


def _one(tokens: NDArray[np.int32], first: int, end: int) -> tuple[Any, Any, Any]:
    return tokens[first:end], np.array([0, end - first], np.int32), np.array([first], np.int32)


def attends_exactly(shape: LayerShape, group: int, tokens: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a row's attention over up to `tokens` tokens is the same bits in a long chunk, a short one and company.

    Args:
        shape: of a layer.
        group: query heads for each of its heads.
        tokens: the longest sequence to try.
        dtype: of keys and values.
    """
    random = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(tokens, heads, dim, generator=random).to(dtype)
        for heads, dim in (
            (shape.heads * group, shape.key_dim),
            (shape.heads, shape.key_dim),
            (shape.heads, shape.value_dim),
        )
    )
    count = -(-tokens // PAGE_TOKENS)
    kept = KeyValuePages((shape,), count, device=torch.device("cpu"), dtype=dtype)
    pages = np.random.default_rng(tokens).permutation(count).astype(np.int32)

    def run(*spans: tuple[int, int]) -> list[Tensor]:
        """Attention of spans of positions, in one pass."""
        step = _spans_step(spans, pages)
        at = torch.cat([torch.arange(first, end) for first, end in spans])
        out = plan_pass(step, kept, {id(shape): 0}, torch.device("cpu")).attend(
            shape, q[at], k[at], v[at], Rules(shape.key_dim**-0.5)
        )
        return list(torch.split(out, [end - first for first, end in spans]))

    whole = run((0, tokens))[0]
    some = sorted({0, tokens - 1, *range(0, tokens, max(1, tokens // 20))})
    short = [(at, min(tokens, at + 3)) for at in some]
    tried = [((at, at + 1), run((at, at + 1))[0]) for at in some]
    tried += zip(short, run(*short), strict=True)
    tried += zip([(at, at + 1) for at in some], run(*((at, at + 1) for at in some)), strict=True)
    return all(torch.equal(whole[first:end], out) for (first, end), out in tried)


def _spans_step(spans: tuple[tuple[int, int], ...], pages: NDArray[np.int32]) -> Step:
    """A step whose sequences all have the same pages, each with a span of its positions."""
    lengths = [end - first for first, end in spans]
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    return Step(
        tokens=np.zeros(starts[-1], np.int32),
        starts=starts,
        positions=np.array([first for first, _ in spans], np.int32),
        pages=np.tile(pages, (len(spans), 1)),
        wanted=np.zeros(0, np.int32),
    )
