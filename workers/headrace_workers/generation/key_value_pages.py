"""Keys and values of every layer as torch tensors, in pages: what the torch runner keeps of tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace_workers.generation.runner import PAGE_TOKENS, Step

__all__ = ["KeyValuePages", "LayerShape", "head_rows", "opened_pages"]


class LayerShape(NamedTuple):
    """What a layer keeps of a token."""

    heads: int
    """Of keys and values; a group of query heads shares each."""
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        """Numbers kept of one token."""
        return self.heads * (self.key_dim + self.value_dim)


class KeyValuePages:
    """Keys and values of every layer, in pages. One page more than asked for is nobody's: padding rows write there.

    Args:
        shapes: of the layers, in the order in which they attend.
        pages: how many.
        device: where they are.
        dtype: of keys and values.

    Raises:
        MemoryError: there is no room.
    """

    def __init__(self, shapes: tuple[LayerShape, ...], pages: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self.shapes = shapes
        self.spare = pages
        try:
            self._keys = [self._zeros(s.heads, s.key_dim, device, dtype) for s in shapes]
            self._values = [self._zeros(s.heads, s.value_dim, device, dtype) for s in shapes]
        except RuntimeError as error:  # torch has no error of its own for it on CPUs
            raise MemoryError(f"no memory for {pages} pages of keys and values: {error}") from error

    def _zeros(self, heads: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros((self.spare + 1) * heads, PAGE_TOKENS * dim, device=device, dtype=dtype)

    def open(self, pages: NDArray[np.int32]) -> None:
        """Wipe pages that get their first token: what is masked is multiplied by zero, which NaN would survive."""
        if not len(pages):
            return
        rows = {}
        for shape, keys, values in zip(self.shapes, self._keys, self._values, strict=True):
            if shape.heads not in rows:
                rows[shape.heads] = head_rows(torch.from_numpy(pages).long().to(keys.device), shape.heads).flatten()
            keys.index_fill_(0, rows[shape.heads], 0)
            values.index_fill_(0, rows[shape.heads], 0)

    def write(self, layer: int, at: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [rows, heads, dim] of each at `at`, [rows * heads] numbers of (page, head, token)."""
        shape = self.shapes[layer]
        self._keys[layer].view(-1, shape.key_dim).index_copy_(0, at, keys.reshape(-1, shape.key_dim))
        self._values[layer].view(-1, shape.value_dim).index_copy_(0, at, values.reshape(-1, shape.value_dim))

    def read(self, layer: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of pages, [..., heads, tokens, dim], for `at` of [..., heads, pages]."""
        shape, lead = self.shapes[layer], at.shape[:-1]
        flat = at.reshape(-1)
        keys = self._keys[layer].index_select(0, flat).view(*lead, -1, shape.key_dim)
        return keys, self._values[layer].index_select(0, flat).view(*lead, -1, shape.value_dim)


def head_rows(pages: Tensor, heads: int) -> Tensor:
    """Rows of a layer's tensor: [..., heads, pages] for pages of [..., pages]."""
    return pages[..., None, :] * heads + torch.arange(heads, device=pages.device)[:, None]


def opened_pages(step: Step) -> NDArray[np.int32]:
    """Pages that get their first token in a step."""
    ends = step.positions + np.diff(step.starts)
    spans = [
        row[-(-position // PAGE_TOKENS) : -(-end // PAGE_TOKENS)]
        for row, position, end in zip(step.pages, step.positions.tolist(), ends.tolist(), strict=True)
    ]
    return np.concatenate(spans)
