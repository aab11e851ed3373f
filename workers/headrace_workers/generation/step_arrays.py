"""A plan as the arrays that a runner takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace_workers.generation.runner import Step
from headrace_workers.generation.step_scheduler import Planned

__all__ = ["step_of"]


def step_of(plan: Sequence[Planned], guesses: Sequence[Sequence[int]] | None = None) -> Step:
    """The arrays a runner takes.

    Args:
        plan: what is to be computed.
        guesses: tokens behind the last of each sequence, of which all rows are wanted.
    """
    counts = np.array([planned.count for planned in plan], dtype=np.int32)
    starts = np.zeros(len(plan) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    most = max(len(planned.sequence.pages) for planned in plan)
    pages = np.full((len(plan), most), -1, dtype=np.int32)
    tokens: list[int] = []
    for row, planned in enumerate(plan):
        sequence = planned.sequence
        pages[row, : len(sequence.pages)] = sequence.pages
        tokens += sequence.tokens(planned.start, planned.start + planned.count - planned.drafts)
        if planned.drafts and guesses is not None:
            tokens += guesses[row]
    draws = np.array([planned.draws for planned in plan], dtype=bool)
    drafts = [planned.drafts for planned in plan if planned.draws]
    last = (starts[1:] - 1)[draws]
    return Step(
        tokens=np.array(tokens, dtype=np.int32),
        starts=starts,
        positions=np.array([planned.start for planned in plan], dtype=np.int32),
        pages=pages,
        wanted=_with_guesses(last, drafts) if any(drafts) else last,
    )


def _with_guesses(last: NDArray[np.int32], drafts: Sequence[int]) -> NDArray[np.int32]:
    """The last row of each sequence, and the rows before it that have a guess behind them."""
    rows = [np.arange(row - count, row + 1, dtype=np.int32) for row, count in zip(last, drafts, strict=True)]
    return np.concatenate(rows)
