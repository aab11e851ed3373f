"""What the decoder engine asks of whatever computes: rows of tokens in, logits out, keys and values kept in pages.

One step carries rows of many sequences: a chunk of one's prompt beside the last token of another. A row's logits depend
on its own sequence's tokens alone, never on what else is in the step or on how a prompt was cut into chunks; where a
runner computes in int8 that holds to the last bit, and its `exact` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PAGE_TOKENS", "DecoderRunner", "RunnerInfo", "Step"]

PAGE_TOKENS = 32
"""Tokens whose keys and values share a page, in every runner: what prefixes are shared by."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass through the model computes: for each sequence a run of rows, which follow what it has in pages."""

    tokens: NDArray[np.int32]
    """[rows] token ids, sequence after sequence."""
    starts: NDArray[np.int32]
    """[sequences + 1] row numbers: sequence s has rows starts[s] .. starts[s + 1], at least one."""
    positions: NDArray[np.int32]
    """[sequences] the position of each sequence's first row: how many of its tokens have keys and values already."""
    pages: NDArray[np.int32]
    """[sequences, most pages] page numbers, -1 behind the last; those for the rows' own tokens are there already."""
    wanted: NDArray[np.int32]
    """[wanted] rows whose logits are asked for, in rising order."""


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a runner says of itself."""

    vocabulary: int
    max_positions: int
    """Tokens of one sequence at most, its prompt included."""
    page_bytes: int
    """Memory that one page takes, of all layers together."""
    device: str
    exact: bool
    """Whether a row's logits are the same bits in any company."""
    details: dict[str, Any]


class DecoderRunner(Protocol):
    """Computes steps. Used from one thread."""

    @property
    def info(self) -> RunnerInfo:
        """What was loaded."""
        ...

    def allocate(self, pages: int) -> None:
        """Make room for `pages` pages, before the first `run`; called again, it starts afresh.

        Raises:
            MemoryError: there is none.
        """
        ...

    def run(self, step: Step) -> Tensor:
        """Compute a step: float32 [wanted, vocabulary] on the CPU or on the runner's device, valid until the next call.

        Keys and values of the step's rows are in their pages afterwards.
        """
        ...

    @property
    def best(self) -> list[int] | None:
        """For each row of the last step the first of its largest logits, or the first that is NaN; None: not known."""
        ...
