"""Memory in huge pages, for what is read from end to end in every step.

Weights larger than the caches are fetched as fast as addresses are translated: with pages of 4 KiB the processor looks
one up for every 64 lines and its prefetchers stop at each border.
"""

from __future__ import annotations

import mmap
from typing import Final

import torch
from torch import Tensor

__all__ = ["Arena", "huge_empty"]

_HUGE_BYTES: Final = 2 << 20
_BLOCK_BYTES: Final = 32 << 20
_LINE_BYTES: Final = 64
_PRIVATE: Final = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, which is the default, has no huge pages."""


def huge_empty(count: int) -> Tensor:
    """Zeros, uint8 [count], in huge pages where the system has them.

    Raises:
        MemoryError: there is none.
    """
    try:
        memory = mmap.mmap(-1, count + _HUGE_BYTES, **_PRIVATE)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no memory for {count} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    skipped = -whole.data_ptr() % _HUGE_BYTES
    return whole[skipped : skipped + count]


class Arena:
    """Tensors that stay, one after the other."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy that lives as long as somebody holds it: contiguous, on a cache line of its own."""
        count = tensor.numel() * tensor.element_size()
        if self._used + count > len(self._block):
            self._block, self._used = huge_empty(max(count, _BLOCK_BYTES)), 0
        place = self._block[self._used : self._used + count].view(tensor.dtype).view(tensor.shape)
        self._used += -(-count // _LINE_BYTES) * _LINE_BYTES
        return place.copy_(tensor)
