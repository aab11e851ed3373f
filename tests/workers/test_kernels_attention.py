"""Packed attention: what each sequence would get alone, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from headrace_workers.kernels.attention import (
    Packing,
    UnsupportedAttentionError,
    attend,
    attention_interface,
    packed,
)
from headrace_workers.kernels.library import Isa, support

LENGTHS = [1, 25, 7, 16, 17, 64, 2, 130, 48]


def qkv(tokens: int, heads: int = 4, head_dim: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values side by side in one matrix, as one projection gives them."""
    random = torch.Generator().manual_seed(tokens + head_dim)
    joined = torch.randn(tokens, 3, heads, head_dim, generator=random)
    q, k, v = joined.unbind(1)
    return q, k, v


def alone(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """One sequence by the book."""
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
    if window is not None:
        at = torch.arange(len(q))
        scores = scores.masked_fill((at[:, None] - at).abs() > window, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.double()).float()


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 128, 24])
def test_every_sequence_gets_what_it_would_alone(head_dim: int, isa: Isa) -> None:
    q, k, v = qkv(sum(LENGTHS), head_dim=head_dim)

    together = attend(q, k, v, Packing(LENGTHS), scale=head_dim**-0.5)

    parts = [torch.split(x, LENGTHS) for x in (q, k, v)]
    expected = torch.cat([alone(*one, scale=head_dim**-0.5) for one in zip(*parts, strict=True)])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=2e-6)


def test_the_bits_do_not_depend_on_company(isa: Isa, threads: Callable[[int], None]) -> None:
    q, k, v = qkv(sum(LENGTHS))
    together = attend(q, k, v, Packing(LENGTHS), scale=0.2)
    parts = [torch.split(x, LENGTHS) for x in (q, k, v, together)]

    for q1, k1, v1, expected in zip(*parts, strict=True):
        assert torch.equal(attend(q1, k1, v1, Packing([len(q1)]), scale=0.2), expected)
    threads(2)
    assert torch.equal(attend(q, k, v, Packing(LENGTHS), scale=0.2), together)


def test_all_instruction_sets_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(sum(LENGTHS))
    answers = []
    for isa in support().isas:
        monkeypatch.setenv("HEADRACE_ISA", isa)
        answers.append(attend(q, k, v, Packing(LENGTHS), scale=0.2))

    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_a_window_limits_how_far_a_token_looks(isa: Isa) -> None:
    lengths = [5, 40, 9]
    q, k, v = qkv(sum(lengths))

    together = attend(q, k, v, Packing(lengths), scale=0.2, window=8)

    parts = [torch.split(x, lengths) for x in (q, k, v)]
    expected = torch.cat([alone(*one, scale=0.2, window=8) for one in zip(*parts, strict=True)])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(together, attend(q, k, v, Packing(lengths), scale=0.2))


def test_large_scores_do_not_overflow(isa: Isa) -> None:
    q, k, v = qkv(20)

    answer = attend(q * 1000, k * 1000, v, Packing([20]), scale=1.0)

    torch.testing.assert_close(answer, alone(q * 1000, k * 1000, v, scale=1.0), rtol=1e-5, atol=1e-5)


def test_a_poisoned_sequence_disturbs_no_other(isa: Isa) -> None:
    q, k, v = (x.clone() for x in qkv(30))
    clean = attend(q, k, v, Packing([10, 10, 10]), scale=0.2)
    k[12] = torch.nan

    answer = attend(q, k, v, Packing([10, 10, 10]), scale=0.2)

    assert answer[10:20].isnan().all()
    assert torch.equal(answer[:10], clean[:10])
    assert torch.equal(answer[20:], clean[20:])


def test_heads_may_lie_apart_in_memory(isa: Isa) -> None:
    """Rotary embeddings leave queries head by head."""
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in qkv(33))

    assert torch.equal(
        attend(q, k, v, Packing([30, 3]), scale=0.2),
        attend(q.contiguous(), k.contiguous(), v.contiguous(), Packing([30, 3]), scale=0.2),
    )


def interface(**asked: object) -> None:
    x = torch.zeros(1, 2, 6, 16)
    module = SimpleNamespace(is_causal=asked.pop("module_is_causal", False))
    with packed(Packing([4, 2])):
        attention_interface(module, x, x, x, asked.pop("mask", None), **asked)  # type: ignore[arg-type]


def test_what_packed_attention_cannot_do_is_refused_and_not_ignored() -> None:
    interface(position_ids=torch.zeros(1), scaling=0.5)

    for asked in ({"mask": torch.zeros(1)}, {"is_causal": True}, {"module_is_causal": True}, {"softcap": 30.0}):
        with pytest.raises(UnsupportedAttentionError):
            interface(**asked)
    with pytest.raises(UnsupportedAttentionError, match="position_bias"):
        interface(position_bias=torch.zeros(1))


def test_outside_of_a_packed_pass_there_is_no_attention() -> None:
    x = torch.zeros(1, 2, 6, 16)
    with pytest.raises(UnsupportedAttentionError, match="outside of a packed pass"):
        attention_interface(SimpleNamespace(), x, x, x, None)
