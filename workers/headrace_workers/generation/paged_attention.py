"""Attention over pages: each row attends to its own sequence's keys and values, wherever their pages lie.

A transformers module calls `paged_attention_interface` in place of its own attention; what it attends by, the layer's
pages and which rows belong where, is set around the pass, since modules between hand nothing on.

On a CPU a row's answer is the same bits in any company and however its prompt was cut, because of three habits.
Products have 16 query rows or more: with fewer, other routines of the linear algebra library take over, which add in
another order. Values are summed in blocks of 256 keys, since the library cuts longer sums where their length says. And
the keys a row may not see are multiplied by exact zeros behind its own, not left out. `runner_check.attends_exactly`
measures that it is so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace_workers.generation.key_value_pages import KeyValuePages, head_rows
from headrace_workers.generation.runner import PAGE_TOKENS, Step
from headrace_workers.kernels.attention import UnsupportedAttentionError
from headrace_workers.scoped import scoped

__all__ = [
    "Attending",
    "Chunk",
    "Decoding",
    "PagedPass",
    "Rules",
    "attending",
    "paged_attention_interface",
    "plan_pass",
    "row_positions",
]

_LEAST_ROWS: Final = 16
_KEYS_AT_ONCE: Final = 256
_HARMLESS: Final = frozenset(
    {
        "cache_position",
        "deterministic",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments that change nothing about which token attends to which."""


class Rules(NamedTuple):
    """How a layer attends."""

    scale: float
    window: int | None = None
    """How many tokens a row sees, its own included; None: all before it."""
    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)`."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of one sequence, which attend by themselves."""

    first: int
    end: int
    """Its rows in the pass: first .. end."""
    position: int
    """Of its first row."""
    pages: Tensor
    """[pages] all that its last row sees."""


@dataclass(frozen=True, eq=False)
class Decoding:
    """One row each of several sequences, which attend together. Shapes are static, as CUDA graphs want them."""

    rows: Tensor | None
    """[sequences] their rows in the pass; None: these are all of its rows, in order."""
    positions: Tensor
    """[sequences]"""
    pages: Tensor
    """[sequences, pages] filled up with any page."""


class Attending(Protocol):
    """What a module's attention is answered by."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, rules: Rules) -> Tensor:
        """[rows, heads, dim] of each in, [rows, query heads, value_dim] out."""
        ...


@dataclass(eq=False)
class PagedPass:
    """One pass through a model: which rows belong to whom."""

    kept: KeyValuePages
    layers: dict[int, int]
    """Number of a layer by the `id` of its module."""
    row_pages: Tensor
    """[rows] where each row's keys and values go …"""
    row_offsets: Tensor
    """[rows] … and which token of the page it is."""
    chunks: tuple[Chunk, ...] = ()
    decodings: tuple[Decoding, ...] = ()
    _remembered: dict[Any, Tensor] = field(default_factory=dict)
    """What layers share: numbers of rows in pages, and masks."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, rules: Rules) -> Tensor:
        """See `Attending`."""
        layer = self.layers[id(module)]
        self.kept.write(layer, self._written_at(k.shape[1]), k, v)
        if len(self.decodings) == 1 and self.decodings[0].rows is None:
            return self._attend_together(layer, q, self.decodings[0], rules)
        out = q.new_empty(*q.shape[:2], v.shape[2])
        for decoding in self.decodings:
            out[decoding.rows] = self._attend_together(layer, q[decoding.rows], decoding, rules)
        for chunk in self.chunks:
            out[chunk.first : chunk.end] = self._attend_chunk(layer, q[chunk.first : chunk.end], chunk, rules)
        return out

    def _attend_chunk(self, layer: int, q: Tensor, chunk: Chunk, rules: Rules) -> Tensor:
        rows, heads = q.shape[0], self.kept.shapes[layer].heads
        group = q.shape[1] // heads
        padded = max(rows, -(-_LEAST_ROWS // group))
        grouped = _padded(q, 0, padded).view(padded, heads, group, -1).permute(1, 2, 0, 3)
        keys, values = self.kept.read(layer, self._read_at(chunk, heads))
        allowed = self._allowed_in_chunk(chunk, padded, keys.shape[-2], rules.window).repeat(group, 1)
        out = _attend(grouped.reshape(heads, group * padded, -1), keys, values, allowed, rules)
        return out.view(heads, group, padded, -1).permute(2, 0, 1, 3)[:rows].flatten(1, 2)

    def _attend_together(self, layer: int, q: Tensor, decoding: Decoding, rules: Rules) -> Tensor:
        sequences, heads = q.shape[0], self.kept.shapes[layer].heads
        group = q.shape[1] // heads
        grouped = q.view(sequences, heads, group, -1)
        if not q.is_cuda:
            grouped = _padded(grouped, 2, max(group, _LEAST_ROWS))
        keys, values = self.kept.read(layer, self._read_at(decoding, heads))
        allowed = self._allowed_together(decoding, keys.shape[-2], rules.window)
        return _attend(grouped, keys, values, allowed, rules)[:, :, :group].flatten(1, 2)

    def _written_at(self, heads: int) -> Tensor:
        key = ("write", heads)
        if key not in self._remembered:
            rows = head_rows(self.row_pages[:, None], heads) * PAGE_TOKENS + self.row_offsets[:, None, None]
            self._remembered[key] = rows.flatten()
        return self._remembered[key]

    def _read_at(self, item: Chunk | Decoding, heads: int) -> Tensor:
        key = ("read", item, heads)
        if key not in self._remembered:
            self._remembered[key] = head_rows(item.pages, heads)
        return self._remembered[key]

    def _allowed_in_chunk(self, chunk: Chunk, rows: int, tokens: int, window: int | None) -> Tensor:
        key = ("chunk", chunk, rows, window)
        if key not in self._remembered:
            seen_from = torch.arange(chunk.position, chunk.position + rows, device=chunk.pages.device)
            self._remembered[key] = _allowed(seen_from, tokens, window)
        return self._remembered[key]

    def _allowed_together(self, decoding: Decoding, tokens: int, window: int | None) -> Tensor:
        key = ("together", decoding, window)
        if key not in self._remembered:
            self._remembered[key] = _allowed(decoding.positions, tokens, window)[:, None, None]
        return self._remembered[key]


def _allowed(positions: Tensor, tokens: int, window: int | None) -> Tensor:
    """[positions, tokens] which tokens are seen from which position."""
    at = torch.arange(tokens, device=positions.device)[None]
    seen = at <= positions[:, None]
    return seen if window is None else seen & (at > positions[:, None] - window)


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    missing = length - x.shape[dim]
    if missing == 0:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, rules: Rules) -> Tensor:
    """[..., rows, dim] by [..., tokens, dim] of each; `allowed` [..., rows or 1, tokens], at least one in each row."""
    if q.is_cuda and rules.softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=rules.scale)
    scores = (q @ k.transpose(-1, -2)).float() * rules.scale
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    weights = scores.masked_fill_(~allowed, float("-inf")).softmax(-1).to(v.dtype)
    out = weights[..., :_KEYS_AT_ONCE] @ v[..., :_KEYS_AT_ONCE, :]
    for first in range(_KEYS_AT_ONCE, v.shape[-2], _KEYS_AT_ONCE):
        out += weights[..., first : first + _KEYS_AT_ONCE] @ v[..., first : first + _KEYS_AT_ONCE, :]
    return out


# -- planning a pass ------------------------------------------------------------------------------------


def plan_pass(step: Step, kept: KeyValuePages, layers: dict[int, int], device: torch.device) -> PagedPass:
    """What a step's rows attend to. Single rows attend together where their sequences are of similar length."""
    counts = np.diff(step.starts)
    of_row = np.repeat(np.arange(len(counts)), counts)
    at = row_positions(step)
    row_pages = step.pages[of_row, at // PAGE_TOKENS]
    needed = (step.positions + counts - 1) // PAGE_TOKENS + 1
    chunks = tuple(_chunk(step, int(s), int(needed[s]), device) for s in np.flatnonzero(counts > 1))
    singles = np.flatnonzero(counts == 1)
    widths = 1 << np.ceil(np.log2(needed[singles])).astype(np.int64)
    decodings = tuple(_decoding(step, singles[widths == width], int(width), device) for width in np.unique(widths))
    return PagedPass(kept, layers, _on(row_pages, device), _on(at % PAGE_TOKENS, device), chunks, decodings)


def row_positions(step: Step) -> NDArray[np.int64]:
    """[rows] the position of each row in its sequence."""
    counts = np.diff(step.starts)
    return np.arange(step.starts[-1]) - np.repeat(step.starts[:-1] - step.positions, counts)


def _chunk(step: Step, sequence: int, pages: int, device: torch.device) -> Chunk:
    first, end = step.starts[sequence : sequence + 2].tolist()
    return Chunk(first, end, int(step.positions[sequence]), _on(step.pages[sequence, :pages], device))


def _decoding(step: Step, sequences: NDArray[np.int64], width: int, device: torch.device) -> Decoding:
    pages = np.zeros((len(sequences), width), np.int64)
    given = step.pages[sequences, :width]
    pages[:, : given.shape[1]] = given.clip(min=0)
    return Decoding(_on(step.starts[sequences], device), _on(step.positions[sequences], device), _on(pages, device))


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(device, non_blocking=True)


# -- what transformers calls ----------------------------------------------------------------------------

_current: ContextVar[Attending | None] = ContextVar("headrace_attending", default=None)


def attending(by: Attending) -> AbstractContextManager[None]:
    """Answer the attention of modules by this for the length of the context."""
    return scoped(_current, by)


def paged_attention_interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: [1, heads, rows, head_dim] in, rows first out.

    Raises:
        UnsupportedAttentionError: the model asks for a mask, a bias, sinks or anything else unknown here, looks ahead,
            or was called outside of a paged pass.
    """
    unknown = sorted(
        name for name, given in others.items() if name not in _HARMLESS and given is not None and given is not False
    )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or not causal or dropout or unknown or query.shape[0] != 1:
        raise UnsupportedAttentionError(
            f"{type(module).__name__} asks for more than causal attention: "
            f"{', '.join(unknown) or 'a mask, looking ahead or dropout'}"
        )
    by = _current.get()
    if by is None:
        raise UnsupportedAttentionError("a module with paged attention was called outside of a paged pass")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return by.attend(module, q, k, v, Rules(float(scale), sliding_window, softcap))[None], None
