"""Getting a pass's rows from where they were computed: reduced there first, and copied while the next pass runs.

The hidden states of a pass are hundreds of times as much as the vectors that are made of them; copied whole, they
take a GPU longer than computing them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Fetch"]


def _sizes(counts: list[int], rows: Tensor) -> Tensor:
    return torch.tensor(counts, dtype=torch.int64).to(rows.device, non_blocking=True)


def _at(indices: list[int], rows: Tensor) -> Tensor:
    return rows.index_select(0, _sizes(indices, rows))


def _segments(rows: Tensor, counts: list[int], how: str) -> Tensor:
    return torch.segment_reduce(rows, how, lengths=_sizes(counts, rows), axis=0)


_REDUCTIONS: Final[dict[str, Callable[[Tensor, list[int]], Tensor]]] = {
    "cls": lambda rows, counts: _at([end - count for end, count in zip(accumulate(counts), counts, strict=True)], rows),
    "lasttoken": lambda rows, counts: _at([end - 1 for end in accumulate(counts)], rows),
    "max": lambda rows, counts: _segments(rows, counts, "max"),
    "mean": lambda rows, counts: _segments(rows, counts, "mean"),
}
"""Poolings that leave a single row as it is, so that pooling their result again changes nothing."""


class Fetch:
    """Rows on their way to the CPU. Making one starts the way, and waits for nothing.

    Args:
        rows: float32 [rows of all texts, width].
        counts: how many of them belong to each text.
        pooling: what each text's rows will be pooled by, if by one way only; a GPU does it before the copy.
    """

    def __init__(self, rows: Tensor, counts: list[int], pooling: str | None) -> None:
        self._rows, self._counts = rows, counts
        self._arrived: Any = None
        if rows.is_cuda:
            if pooling in _REDUCTIONS:
                rows, self._counts = _REDUCTIONS[pooling](rows, counts), [1] * len(counts)
            self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._rows.copy_(rows, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[NDArray[np.float32], list[int]]:
        """The rows, and how many belong to each text now."""
        if self._arrived is not None:
            self._arrived.synchronize()
        rows: NDArray[np.float32] = self._rows.numpy()
        return rows, self._counts
