"""Running a model over several texts at once without computing a single token of padding.

`PackedRunner` puts all tokens in one row and lets attention keep the texts apart. Whether an architecture can be run
like that is not looked up but tried: on a few texts, packed and one by one must agree. Where they do not,
`SingleRunner` runs one text after the other, which is always right.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace_workers.kernels.attention import Packing, UnsupportedAttentionError, attention_interface, packed
from headrace_workers.models.loading import LoadedModel

__all__ = ["Ids", "PackedRunner", "Runner", "SingleRunner", "can_pack", "distance"]

log = logging.getLogger(__name__)

_ATTENTION: Final = "headrace_packed"
_TOLERANCE: Final = 2e-4
"""Relative distance allowed between packed and single answers in float32. Rounding alone gives about 1e-6."""

Ids = NDArray[np.int64]


class Runner(Protocol):
    """Runs a model over texts."""

    def __call__(self, texts: Sequence[Ids]) -> tuple[Tensor, list[int]]:
        """Run texts together, each a non-empty array of token ids.

        Returns:
            Float32 rows, on the model's device, and how many of them belong to each text: its tokens' hidden states
            (embedding), its tokens' logits (token classification) or one row of logits (sequence classification).
        """
        ...


class SingleRunner:
    """One text after the other, in the model's own way."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Ids]) -> tuple[Tensor, list[int]]:
        """See `Runner`."""
        rows = [self._one(torch.from_numpy(ids)[None]) for ids in texts]
        return torch.cat(rows), [len(part) for part in rows]

    def _one(self, ids: Tensor) -> Tensor:
        answer = self._model.module(input_ids=ids.to(self._model.device))
        return _rows(answer[0])


class _Replay(nn.Module):
    """Stands where a model's encoder stood, and answers with hidden states that were computed before."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.hidden: Tensor = torch.empty(0)
        self._pooler = getattr(encoder, "pooler", None)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

        if self._pooler is None:
            return BaseModelOutput(last_hidden_state=self.hidden)
        return BaseModelOutputWithPooling(last_hidden_state=self.hidden, pooler_output=self._pooler(self.hidden))


class PackedRunner:
    """All texts in one row of tokens.

    The head runs on one text at a time: it is small, it finds its texts where the architecture expects them, and a
    product over all texts might round a text's logits by how many others there are.
    """

    def __init__(self, model: LoadedModel) -> None:
        if not model.takes_positions:
            raise UnsupportedAttentionError("the model cannot be told the positions of tokens")
        self._model = model
        self._first = model.first_position
        self._head: nn.Module | None = None
        self._replay = _Replay(model.encoder)
        if model.task != "embedding":
            self._head = _with_encoder(model.module, self._replay)
        _use_packed_attention(model.module)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Ids]) -> tuple[Tensor, list[int]]:
        """See `Runner`."""
        lengths = [len(ids) for ids in texts]
        hidden = self._encode(np.concatenate(texts), lengths)
        if self._head is None:
            return hidden, lengths
        rows = [self._logits(ids, part) for ids, part in zip(texts, torch.split(hidden, lengths), strict=True)]
        return torch.cat(rows), [len(part) for part in rows]

    def _encode(self, ids: Ids, lengths: list[int]) -> Tensor:
        device = self._model.device
        packing = Packing(lengths, device)
        begins = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        positions = np.arange(len(ids), dtype=np.int64) - begins + self._first
        with packed(packing):
            answer = self._model.encoder(
                input_ids=torch.from_numpy(ids)[None].to(device, non_blocking=True),
                position_ids=torch.from_numpy(positions)[None].to(device, non_blocking=True),
            )
        return _rows(answer[0])

    def _logits(self, ids: Ids, hidden: Tensor) -> Tensor:
        assert self._head is not None
        self._replay.hidden = hidden[None].to(self._model.module.dtype)  # type: ignore[arg-type]
        answer = self._head(input_ids=torch.from_numpy(ids)[None].to(self._model.device))
        return _rows(answer[0])


def _rows(answer: Tensor) -> Tensor:
    """[1, rows, width] or [1, width] to float32 [rows, width]."""
    return answer.reshape(-1, answer.shape[-1]).float()


def _with_encoder(model: nn.Module, encoder: nn.Module) -> nn.Module:
    """A shallow copy of a model with another encoder; everything else is shared."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin._modules[str(model.base_model_prefix)] = encoder
    return twin


def _use_packed_attention(model: nn.Module) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, attention_interface)
    model.set_attn_implementation(_ATTENTION)  # type: ignore[operator]


def can_pack(model: LoadedModel, texts: Sequence[Ids]) -> str:
    """Whether a `PackedRunner` answers like the model itself; the model must be in full precision.

    Args:
        model: left with packed attention if it does, with its own if not.
        texts: of different lengths, one of them near the longest that will come.

    Returns:
        Why not; empty if it does.
    """
    own = model.config._attn_implementation
    expected, lengths = SingleRunner(model)(texts)
    try:
        got, got_lengths = PackedRunner(model)(texts)
        worst = distance(got, expected, lengths) if got_lengths == lengths else float("inf")
        problem = "" if worst < _TOLERANCE else f"packed and alone, its answers differ by {worst:.2g}"
    except Exception as error:  # an architecture can stumble over packed tokens in any way
        problem = f"{type(error).__name__}: {error}"
    if problem:
        model.module.set_attn_implementation(own)  # type: ignore[operator]
        log.warning("%s cannot be run packed, its texts run one by one: %s", type(model.module).__name__, problem)
    return problem


def distance(rows: Tensor, others: Tensor, lengths: list[int]) -> float:
    """The largest relative distance between the answers to a text."""
    pairs = zip(torch.split(rows, lengths), torch.split(others, lengths), strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)
