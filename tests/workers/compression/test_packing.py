"""Packing: codes in as few bits as they need, tensors without their zeros, and all of it back to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace_workers.compression.quantization.packing import (
    from_bitmask,
    nonzero,
    pack,
    packed_bytes,
    to_bitmask,
    unpack,
)


def test_two_codes_of_four_bits_share_a_byte() -> None:
    assert pack(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x0F]]


def test_a_row_begins_with_a_byte_of_its_own() -> None:
    packed = pack(torch.tensor([[7], [1]], dtype=torch.uint8), 3)

    assert packed.tolist() == [[7], [1]]


def test_a_mask_says_where_something_is() -> None:
    bitmask, values = to_bitmask(torch.tensor([0.0, 1.5, 0.0, -2.0]))

    assert (bitmask.tolist(), values.tolist()) == ([0b1010], [1.5, -2.0])


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_whatever_is_packed_comes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=random)

    packed = pack(codes, bits)

    assert packed.shape == (rows, packed_bytes(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_large_matrices_are_packed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 8, (3, 7, 11), dtype=torch.uint8)
    whole = pack(codes, 3)
    monkeypatch.setattr("headrace_workers.compression.quantization.packing._CODES_AT_ONCE", 25)

    assert torch.equal(pack(codes, 3), whole)
    assert torch.equal(unpack(whole, 3, 11), codes)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1e-45, 3.5]), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_every_bit_of_a_masked_tensor_comes_back(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)

    back = from_bitmask(*to_bitmask(tensor), [len(values)])

    assert back.dtype == dtype
    assert torch.equal(_bytes(back), _bytes(tensor))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_masked_too(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 0], [1, 0, 0]]).to(dtype)

    assert torch.equal(from_bitmask(*to_bitmask(tensor), [2, 3]), tensor)


def test_negative_zero_is_something() -> None:
    assert nonzero(torch.tensor([0.0, -0.0])).tolist() == [False, True]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="16 does not fit into 4 bits"):
        pack(torch.tensor([[16]], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="take 2, not 3 bytes"):
        unpack(torch.zeros(1, 3, dtype=torch.uint8), 4, 4)
    with pytest.raises(ValueError, match="2 bits set, for 1 elements"):
        from_bitmask(torch.tensor([3], dtype=torch.uint8), torch.ones(1), [4])
    with pytest.raises(ValueError, match="not 1 bytes"):
        from_bitmask(torch.tensor([3], dtype=torch.uint8), torch.ones(2), [1 << 40])


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
