"""From token vectors to one vector a text, as the model's own sentence-transformers configuration says.

Every text is pooled from its own rows alone and in one fixed order, so its vector is the same in any batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelLoadError
from headrace_workers.models.source import ModelSource

__all__ = ["Dense", "Pooling", "read_pooling"]

Array = NDArray[np.float32]

_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
"""sentence-transformers' switches, in the order in which it joins several poolings."""

_SMALLEST_NORM: Final = np.float32(1e-12)

_ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "Tanh": np.tanh,
    "Identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
}


_REDUCTIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "cls": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
    "max": lambda rows: rows.max(0),
    "mean": lambda rows: rows.sum(0) / np.float32(len(rows)),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / np.sqrt(np.float32(len(rows))),
}


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling."""

    weight: Array
    """[outputs, inputs]"""
    bias: Array | None
    activation: str

    def __call__(self, vector: Array) -> Array:
        """[inputs] to [outputs]. One text at a time: a product of many might round otherwise."""
        y = self.weight @ vector
        return _ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias)


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made of its tokens'."""

    modes: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = False

    def __call__(self, tokens: Array, starts: NDArray[np.int32], *, normalize: Sequence[bool]) -> Array:
        """Pool packed sequences.

        Args:
            tokens: [tokens of all texts, width].
            starts: row at which each text begins, and the number of rows: texts + 1 numbers.
            normalize: for each text, whether its vector is scaled to length one.

        Returns:
            [texts, dimensions]
        """
        bounds = starts.tolist()
        texts = [tokens[begin:end] for begin, end in itertools.pairwise(bounds)]
        return np.stack([self._one(rows, scaled) for rows, scaled in zip(texts, normalize, strict=True)])

    def _one(self, rows: Array, normalize: bool) -> Array:
        vector = np.concatenate([_REDUCTIONS[mode](rows) for mode in self.modes])
        for layer in self.dense:
            vector = layer(vector)
        return vector / max(np.sqrt(vector @ vector), _SMALLEST_NORM) if normalize else vector

    def describe(self) -> str:
        """For logs and `EngineInfo.details`."""
        steps = ["+".join(self.modes), *("dense" for _ in self.dense), *(["normalize"] if self.normalize else [])]
        return ", ".join(steps)


def read_pooling(source: ModelSource) -> Pooling:
    """The model's own pooling; the mean, not normalized, where it has no such configuration.

    Raises:
        ModelLoadError: it asks for something that is not known here.
    """
    modules = source.read_json("modules.json")
    if modules is None:
        return Pooling()
    modes: tuple[str, ...] = ("mean",)
    dense: list[Dense] = []
    normalize = False
    for module in sorted(modules, key=lambda module: int(module["idx"])):
        match str(module["type"]).rpartition(".")[2]:
            case "Transformer":
                continue
            case "Pooling":
                modes = _modes(source, source.read_map(f"{module['path']}/config.json"))
            case "Dense":
                dense.append(_dense(source, str(module["path"])))
            case "Normalize":
                normalize = True
            case other:
                raise ModelLoadError(f"{source.name}: modules.json has a {other}, which is not known here")
    return Pooling(modes, tuple(dense), normalize)


def _modes(source: ModelSource, config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    modes = (
        tuple(named if isinstance(named, list) else [named])
        if named
        else tuple(mode for flag, mode in _FLAGS.items() if config.get(flag))
    )
    unknown = set(modes) - set(_REDUCTIONS) or {
        flag for flag, on in config.items() if flag.startswith("pooling_mode_") and on
    } - set(_FLAGS)
    if unknown or not modes:
        raise ModelLoadError(f"{source.name} asks for the pooling {sorted(unknown) or 'none'}, which is not known here")
    return modes


def _dense(source: ModelSource, path: str) -> Dense:
    from safetensors.numpy import load_file

    config, weights = source.read_map(f"{path}/config.json"), source.folder / path / "model.safetensors"
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ModelLoadError(f"{source.name}: {path} has the activation {activation}, which is not known here")
    if not weights.is_file():
        raise ModelLoadError(f"{source.name}: {path} has no model.safetensors")
    tensors = load_file(weights)
    bias = tensors.get("linear.bias")
    return Dense(
        tensors["linear.weight"].astype(np.float32), None if bias is None else bias.astype(np.float32), activation
    )
