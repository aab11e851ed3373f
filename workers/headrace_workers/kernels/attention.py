"""Attention over packed sequences: all tokens of a batch in one row, each attending to its own sequence only.

`Packing` says where sequences begin; it is set around a forward pass and read by whatever attends within it, since
Hugging Face's modules between the two pass nothing through that every architecture would hand on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor

from headrace_workers.kernels.library import Attention, support
from headrace_workers.scoped import scoped

__all__ = ["Packing", "UnsupportedAttentionError", "attend", "attention_interface", "packed"]

_LANES: Final = 16
_FLASH_DTYPES: Final = (torch.float16, torch.bfloat16)
_FLASH_HEAD_DIM: Final = 256
_HARMLESS: Final = frozenset(
    {"position_ids", "deterministic", "output_attentions", "output_hidden_states", "use_cache"}
)
"""Arguments that change nothing about which token attends to which."""


class UnsupportedAttentionError(Exception):
    """The model wants something of its attention that packed sequences cannot give it."""


class Packing:
    """Where sequences begin in a row of tokens.

    Args:
        lengths: tokens of each sequence.
        device: where the row is.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(lengths, dtype=torch.int32), 0, out=starts[1:])
        self.starts = starts.to(device, non_blocking=True)
        self.lengths = tuple(lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lengths)


_current: ContextVar[Packing | None] = ContextVar("headrace_packing", default=None)


def packed(packing: Packing) -> AbstractContextManager[None]:
    """Attend by this packing for the length of the context."""
    return scoped(_current, packing)


def current_packing() -> Packing:
    """The packing of the forward pass that runs.

    Raises:
        UnsupportedAttentionError: there is none.
    """
    packing = _current.get()
    if packing is None:
        raise UnsupportedAttentionError("a packed model was called outside of a packed pass")
    return packing


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, window: int | None = None) -> Tensor:
    """Softmax attention within each sequence.

    Args:
        q: queries, [tokens, heads, head_dim]; k and v alike. Any strides.
        packing: where sequences begin.
        scale: factor of the scores.
        window: the furthest a token may look to either side; None for no limit.

    Returns:
        [tokens, heads, head_dim], of q's dtype, contiguous.
    """
    if q.is_cuda and q.dtype in _FLASH_DTYPES and q.shape[2] % 8 == 0 and q.shape[2] <= _FLASH_HEAD_DIM:
        return _attend_by_flash(q, k, v, packing, scale=scale, window=window)
    if q.is_cuda or q.dtype != torch.float32 or q.shape[2] % _LANES or q.shape != k.shape or not support().isas:
        return _attend_by_torch(q, k, v, packing, scale=scale, window=window)
    return _attend_natively(q, k, v, packing, scale=scale, window=window)


def _attend_natively(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, window: int | None) -> Tensor:
    library = support().library
    assert library is not None
    _, heads, head_dim = q.shape
    q, k, v = (_rows(x) for x in (q, k, v))
    out = torch.empty(q.shape)
    call = Attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        packing.starts.data_ptr(),
        len(packing.lengths),
        heads,
        head_dim,
        -1 if window is None else window,
        scale,
    )
    if library.attention(ctypes.addressof(call), torch.get_num_threads()):
        raise MemoryError("no memory for a kernel's scratch space")
    return out


def _rows(x: Tensor) -> Tensor:
    """The same values with a token's heads side by side in memory."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _attend_by_flash(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    longest = max(packing.lengths)
    reach = -1 if window is None else window
    out = varlen_attn(
        q, k, v, packing.starts, packing.starts, longest, longest, scale=scale, window_size=(reach, reach)
    )
    assert isinstance(out, Tensor)
    return out


def _attend_by_torch(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, window: int | None) -> Tensor:
    """One sequence after the other; a sequence's answer is the same whatever stands beside it."""
    parts = []
    for one in zip(*(torch.split(x, list(packing.lengths)) for x in (q, k, v)), strict=True):
        q1, k1, v1 = (x.transpose(0, 1)[None] for x in one)
        mask = None if window is None or q1.shape[2] <= window + 1 else _band(q1.shape[2], window, q.device)
        y = torch.nn.functional.scaled_dot_product_attention(
            q1, k1, v1, attn_mask=mask, scale=scale, enable_gqa=q1.shape[1] != k1.shape[1]
        )
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts).contiguous() if parts else torch.empty_like(q)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() <= window


def attention_interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: [1, heads, tokens, head_dim] in, tokens first out.

    Raises:
        UnsupportedAttentionError: the model asks for a mask, a bias, causality or anything else unknown here.
    """
    unknown = sorted(
        name for name, given in others.items() if name not in _HARMLESS and given is not None and given is not False
    )
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if attention_mask is not None or causal or dropout or unknown or query.shape[0] != 1:
        raise UnsupportedAttentionError(
            f"{type(module).__name__} asks for more than plain attention: {unknown or 'a mask, causality or dropout'}"
        )
    window = None if sliding_window is None else sliding_window - 1  # inclusive of the token itself in transformers
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, current_packing(), scale=scale, window=window)[None], None
