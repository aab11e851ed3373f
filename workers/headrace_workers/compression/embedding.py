"""A text's vector from its tokens', in torch: as `models.pooling` makes it, but in batches and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from headrace_workers.models.pooling import Pooling

__all__ = ["pooled"]

_LOWEST: Final = torch.finfo(torch.float32).min


def pooled(hidden: Tensor, valid: Tensor, pooling: Pooling) -> Tensor:
    """Pool the token vectors of padded texts.

    Args:
        hidden: float32 [texts, positions, width].
        valid: bool [texts, positions], its padding behind each text.
        pooling: the model's own.

    Returns:
        float32 [texts, dimensions]
    """
    vectors = torch.cat([_REDUCTIONS[mode](hidden, valid) for mode in pooling.modes], dim=1)
    for layer in pooling.dense:
        vectors = vectors @ torch.from_numpy(layer.weight).T
        if layer.bias is not None:
            vectors = vectors + torch.from_numpy(layer.bias)
        vectors = _ACTIVATIONS[layer.activation](vectors)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors


def _sum(hidden: Tensor, valid: Tensor) -> Tensor:
    return (hidden * valid[..., None]).sum(1)


def _lengths(valid: Tensor) -> Tensor:
    return valid.sum(1, keepdim=True).float()


_REDUCTIONS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cls": lambda hidden, _valid: hidden[:, 0],
    "lasttoken": lambda hidden, valid: hidden[torch.arange(len(hidden)), valid.sum(1) - 1],
    "max": lambda hidden, valid: hidden.masked_fill(~valid[..., None], _LOWEST).amax(1),
    "mean": lambda hidden, valid: _sum(hidden, valid) / _lengths(valid),
    "mean_sqrt_len_tokens": lambda hidden, valid: _sum(hidden, valid) / _lengths(valid).sqrt(),
}

_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": torch.relu,
}
