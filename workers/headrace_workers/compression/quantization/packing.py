"""Numbers in as few bits as they need: codes of 1 to 8 bits side by side, and a bit for each element that is not zero.

Both are lossless to the last bit, and both are layouts at rest: nothing computes on them.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["from_bitmask", "nonzero", "pack", "packed_bytes", "to_bitmask", "unpack"]

_CODES: Final = 8
"""Codes of n bits that fill n whole bytes."""
_CODES_AT_ONCE: Final = 1 << 22
"""A code takes eight bytes while it is moved, so they are moved in parts."""
_BITS_OF: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The whole numbers that have as many bytes."""


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of so many codes."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned numbers, lowest bits first, each row from a byte of its own.

    Args:
        codes: uint8 [..., columns], each below 2^bits.
        bits: 1 to 8.

    Returns:
        uint8 [..., ceil(columns · bits / 8)].

    Raises:
        ValueError: a number needs more bits.
    """
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"{int(codes.max())} does not fit into {bits} bits")
    rows = codes.reshape(-1, codes.shape[-1])
    packed = [_packed(part, bits) for part in torch.split(rows, _rows_at_once(rows.shape[1]))]
    return torch.cat(packed).view(*codes.shape[:-1], -1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """What `pack` was given: uint8 [..., columns].

    Raises:
        ValueError: a row has not as many bytes as that takes.
    """
    if packed.shape[-1] != packed_bytes(columns, bits):
        raise ValueError(
            f"{columns} codes of {bits} bits take {packed_bytes(columns, bits)}, not {packed.shape[-1]} bytes"
        )
    rows = packed.reshape(-1, packed.shape[-1])
    codes = [_unpacked(part, bits, columns) for part in torch.split(rows, _rows_at_once(columns))]
    return torch.cat(codes).view(*packed.shape[:-1], columns)


def to_bitmask(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Split a tensor into which elements are not zero, and what they are. Negative zeros and NaN are not zero.

    Args:
        tensor: of any shape and any type of 1, 2, 4 or 8 bytes.

    Returns:
        uint8 [ceil(elements / 8)], lowest bit first, and the elements, one after the other, in the tensor's type.
    """
    flat, there = tensor.detach().reshape(-1), nonzero(tensor)
    return pack(there.to(torch.uint8)[None], 1)[0], flat[there]


def nonzero(tensor: Tensor) -> Tensor:
    """Which elements have a bit set that is not zero: bool [elements]."""
    return tensor.detach().contiguous().reshape(-1).view(_BITS_OF[tensor.element_size()]) != 0


def from_bitmask(bitmask: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    """What `to_bitmask` was given.

    Raises:
        ValueError: the parts do not fit each other or the shape.
    """
    elements = 1
    for size in shape:
        elements *= size
    there = unpack(bitmask[None], 1, elements)[0].bool()
    if int(there.sum()) != values.numel():
        raise ValueError(f"a bitmask with {int(there.sum())} bits set, for {values.numel()} elements")
    flat = values.new_zeros(elements)
    flat[there] = values
    return flat.view(shape)


def _rows_at_once(columns: int) -> int:
    return max(1, _CODES_AT_ONCE // max(1, columns))


def _shifts(bits: int) -> Tensor:
    return torch.arange(_CODES) * bits


def _packed(rows: Tensor, bits: int) -> Tensor:
    """Eight codes become one number of 8 · bits bits, of which the bytes that are not used are dropped."""
    count, columns = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -columns % _CODES)).view(count, -1, _CODES).long()
    words = (padded << _shifts(bits)).sum(2, dtype=torch.long)
    whole = words[..., None].view(torch.uint8)[..., :bits].reshape(count, -1)
    return whole[:, : packed_bytes(columns, bits)].contiguous()


def _unpacked(rows: Tensor, bits: int, columns: int) -> Tensor:
    count = rows.shape[0]
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % bits)).view(count, -1, bits)
    words = torch.nn.functional.pad(padded, (0, 8 - bits)).contiguous().view(torch.long)
    codes = (words >> _shifts(bits)) & ((1 << bits) - 1)
    return codes.to(torch.uint8).view(count, -1)[:, :columns].contiguous()
