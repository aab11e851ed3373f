"""Steps that only decode, replayed as CUDA graphs: hundreds of small kernels for the price of one launch.

A graph has fixed shapes and fixed addresses. So there is one for each power of two of sequences and of pages, captured
when it is first needed; what changes from step to step is copied into its inputs, and sequences that are missing are
played by rows that read and write a page that is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace_workers.generation.paged_attention import Decoding
from headrace_workers.generation.runner import PAGE_TOKENS, Step

__all__ = ["Bucket", "CaptureError", "DecodeGraphs", "StaticInputs", "bucket_of"]

_MOST_SEQUENCES: Final = 256
_MOST_ENTRIES: Final = 1 << 14
"""Sequences times pages of the largest graph: beyond that attention takes longer than its launch."""
_WARM_UPS: Final = 2

Decode = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""Tokens and the keyword arguments of a `PagedPass`, to logits; it allocates nothing that outlives it."""


class CaptureError(Exception):
    """The module does something that no graph can hold, such as waiting for the GPU."""


class Bucket(NamedTuple):
    """The shape of a graph."""

    sequences: int
    pages: int


def bucket_of(step: Step) -> Bucket:
    """The smallest that holds a step of single rows."""
    needed = int(step.positions.max()) // PAGE_TOKENS + 1
    return Bucket(_power_of_two(len(step.positions)), _power_of_two(needed))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


class StaticInputs:
    """What a graph reads, always at the same addresses.

    Args:
        bucket: its shape.
        device: where it is.
        spare_page: what missing sequences read and write.
    """

    def __init__(self, bucket: Bucket, device: torch.device, *, spare_page: int) -> None:
        self.bucket = bucket
        self._spare_page = spare_page
        self._numbers = torch.zeros(3 + bucket.pages, bucket.sequences, dtype=torch.int64, device=device)
        self.tokens, self._positions, self._row_pages = self._numbers[:3]
        self._offsets = torch.zeros(bucket.sequences, dtype=torch.int64, device=device)
        self._pages = torch.zeros(bucket.sequences, bucket.pages, dtype=torch.int64, device=device)

    def fill(self, step: Step) -> None:
        """Take over a step of single rows, in one copy from the host."""
        self._numbers.copy_(torch.from_numpy(self._packed(step)))
        torch.remainder(self._positions, PAGE_TOKENS, out=self._offsets)
        self._pages.copy_(self._numbers[3:].t())

    def _packed(self, step: Step) -> NDArray[np.int64]:
        count, width = step.pages.shape[0], min(step.pages.shape[1], self.bucket.pages)
        packed = np.zeros(self._numbers.shape, np.int64)
        packed[2:] = self._spare_page
        packed[0, :count] = step.tokens
        packed[1, :count] = step.positions
        packed[2, :count] = step.pages[np.arange(count), step.positions // PAGE_TOKENS]
        packed[3 : 3 + width, :count] = step.pages[:, :width].clip(min=0).T
        return packed

    @property
    def paging(self) -> dict[str, Any]:
        """The keyword arguments of the `PagedPass`."""
        decoding = Decoding(None, self._positions, self._pages)
        return {"row_pages": self._row_pages, "row_offsets": self._offsets, "decodings": (decoding,)}


@dataclass(frozen=True)
class _Captured:
    inputs: StaticInputs
    graph: Any
    logits: Tensor


class DecodeGraphs:
    """Captured steps by their buckets.

    Args:
        decode: runs a step of single rows.
        device: a GPU.
        spare_page: a page that is nobody's.
    """

    def __init__(self, decode: Decode, device: torch.device, *, spare_page: int) -> None:
        self._decode, self._device, self._spare_page = decode, device, spare_page
        self._captured: dict[Bucket, _Captured] = {}
        self._logits: dict[int, Tensor] = {}
        """Where graphs of so many sequences leave their logits; shared, since they are large."""
        self._memory: Any = None

    def fits(self, step: Step) -> bool:
        """Whether every sequence of a step has one row, all logits are wanted, and a graph is worth it."""
        rows = len(step.tokens)
        if not rows == len(step.positions) == len(step.wanted) or rows > _MOST_SEQUENCES:
            return False
        bucket = bucket_of(step)
        return bucket.sequences * bucket.pages <= _MOST_ENTRIES

    def run(self, step: Step) -> Tensor:
        """Float32 [rows, vocabulary], valid until the next call.

        Raises:
            CaptureError: it cannot be captured; the pages are as they were before, or hold the step's rows.
        """
        bucket = bucket_of(step)
        if bucket not in self._captured:
            self._captured[bucket] = self._capture(
                StaticInputs(bucket, self._device, spare_page=self._spare_page), step
            )
        captured = self._captured[bucket]
        captured.inputs.fill(step)
        captured.graph.replay()
        return captured.logits[: len(step.tokens)]

    def _capture(self, inputs: StaticInputs, step: Step) -> _Captured:
        """Capture on the step that asked for it: it is computed some times over, which changes nothing in its pages."""
        inputs.fill(step)
        aside: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                example = self._decode(inputs.tokens, inputs.paging)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        logits = self._logits.setdefault(inputs.bucket.sequences, torch.empty_like(example))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._memory):
                logits.copy_(self._decode(inputs.tokens, inputs.paging))
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        self._memory = graph.pool()
        return _Captured(inputs, graph, logits)
