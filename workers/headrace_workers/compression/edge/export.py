"""Exporting an artifact to formats that run without us: ONNX, `torch.export`, ExecuTorch.

What is exported computes in floating point with the artifact's weights: each quantized weight stands for its values,
and is stored as it is in the artifact as far as the format can. Calibrated ranges of inputs go into ONNX as well.

==============  ====================================================================================
`onnx`          int8 and 4-bit weights as such, behind `DequantizeLinear` (operator set 21)
`torch`         a `.pt2` program (`torch.export.load`); weights of 8 bits or fewer take a byte each
`executorch`    a `.pte` program, lowered to XNNPACK; weights in float32
==============  ====================================================================================

A text model takes `input_ids` and `attention_mask`, int64 [texts, tokens], padded behind each text, and answers with
`sentence_embedding`, pooled as the model's configuration says, or with `logits`. Its tokenizer is the artifact's
tokenizer.json.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from headrace.errors import CompressionError
from headrace_workers.artifacts.artifact import Artifact, Variant, open_artifact
from headrace_workers.compression.embedding import pooled
from headrace_workers.compression.quantization.layers import weight_of
from headrace_workers.kernels.layers import QuantizedLinear
from headrace_workers.kernels.schemes import parse_scheme
from headrace_workers.kernels.weights import AffineWeight, Int8Weight
from headrace_workers.models.custom import load_custom
from headrace_workers.models.loading import load_model, max_tokens_of
from headrace_workers.models.pooling import Pooling, read_pooling
from headrace_workers.models.source import ModelSource, find_source

__all__ = ["ExportFormat", "Exportable", "Stored", "export_artifact"]

ExportFormat = Literal["onnx", "torch", "executorch"]

_MODEL: Final = "model"
"""Where the wrapped module stands in what is exported; its tensors' names begin with it."""
_MOST_BATCH: Final = 1024
_MOST_TOKENS: Final = 8192
_TRACED_TOKENS: Final = 7


@dataclass(frozen=True)
class Stored:
    """A quantized weight of the module that is exported."""

    weight: Int8Weight | AffineWeight
    table: str
    """The module of the int8 table whose rows these are; empty: they are its own."""


@dataclass(frozen=True)
class Exportable:
    """A module with what an exporter must know of it."""

    module: nn.Module
    """Takes the inputs by name. Its `QuantizedLinear`s are not prepared: exporters replace them."""
    inputs: Mapping[str, Tensor]
    """An example, of two rows."""
    dynamic: Mapping[str, Mapping[int, Any]]
    """For each input, `torch.export.Dim`s of its free dimensions."""
    answer: str
    """What its output is called."""
    stored: Mapping[str, Stored]
    """By the name of the module in `module`."""


def export_artifact(
    artifact: Artifact | str | Path,
    format: ExportFormat,
    output: str | Path,
    *,
    variant: str | None = None,
    factory: Callable[[], nn.Module] | None = None,
    example: Tensor | None = None,
) -> Path:
    """Write an artifact in another format. The file appears whole or not at all.

    Args:
        artifact: where it is, or the artifact opened already.
        format: which.
        output: the file to write; it must not exist.
        variant: which variant; None: the artifact's first.
        factory: for the task `custom`, what makes the module (`load_custom`).
        example: for the task `custom`, an input of one example, float32.

    Raises:
        CompressionError: a package for the format is missing (the message has the line that installs it), the file
            is there already, or the model cannot be written in the format.
        ArtifactError: the artifact is broken.
        ModelLoadError: it cannot be loaded.
    """
    if format not in get_args(ExportFormat):
        raise CompressionError(f"there is no format {format!r}; there are {', '.join(get_args(ExportFormat))}")
    target = Path(output)
    if target.exists():
        raise CompressionError(f"{target} is there already")
    write = _exporter(format)
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    chosen = opened.variant(variant)
    if opened.manifest.task == "custom":
        exportable = _custom(opened, chosen, factory, example)
    else:
        exportable = _text(find_source(opened.path), chosen)
    _write_whole(target, write, exportable)
    return target


def _exporter(name: ExportFormat) -> Callable[[Exportable, Path], None]:
    from headrace_workers.compression.edge import onnx_file as export_onnx
    from headrace_workers.compression.edge import torch_file as export_torch

    exporter = {
        "onnx": export_onnx.write_onnx,
        "torch": export_torch.write_program,
        "executorch": export_torch.write_executorch,
    }[name]
    _check_packages(name)
    return exporter


_PACKAGES: Final[Mapping[ExportFormat, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxscript"),
    "torch": (),
    "executorch": ("executorch",),
}


def _check_packages(name: ExportFormat) -> None:
    from importlib.util import find_spec

    if missing := [package for package in _PACKAGES[name] if find_spec(package) is None]:
        raise CompressionError(f"the format {name} takes packages that are missing: pip install {' '.join(missing)}")


def _write_whole(target: Path, write: Callable[[Exportable, Path], None], exportable: Exportable) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{secrets.token_hex(4)}.{target.name}"
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters' advice to those who write exporters
            write(exportable, draft)
        draft.rename(target)
    except CompressionError:
        raise
    except Exception as error:  # whatever a tracer raises for a module that it cannot follow
        raise CompressionError(f"{target.name} cannot be written: {type(error).__name__}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


class _TextModule(nn.Module):
    """A model of transformers with plain inputs and one plain output."""

    def __init__(self, module: nn.Module, pooling: Pooling | None) -> None:
        super().__init__()
        self.model = module
        self._pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        answer: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return answer if self._pooling is None else pooled(answer, attention_mask.bool(), self._pooling)


class _AnyModule(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.model = module

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x)
        return answer


def _text(source: ModelSource, variant: Variant) -> Exportable:
    loaded = load_model(source, source.task(None), variant=variant.name)
    if loaded.task == "causal_lm":
        loaded.config.use_cache = False  # what was computed for earlier tokens is no output
    embedding = loaded.task == "embedding"
    wrapped = _TextModule(loaded.module, read_pooling(source) if embedding else None).eval()
    ids = torch.arange(2 * _TRACED_TOKENS).view(2, _TRACED_TOKENS) % loaded.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, _TRACED_TOKENS - 2 :] = 0
    free = {
        0: torch.export.Dim("batch", max=_MOST_BATCH),
        1: torch.export.Dim("tokens", max=min(max_tokens_of(source, loaded), _MOST_TOKENS)),
    }
    return Exportable(
        wrapped,
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": free, "attention_mask": free},
        "sentence_embedding" if embedding else "logits",
        _stored(wrapped, variant),
    )


def _custom(
    artifact: Artifact, variant: Variant, factory: Callable[[], nn.Module] | None, example: Tensor | None
) -> Exportable:
    if factory is None or example is None:
        raise CompressionError(f"{artifact.path} is of the task custom: give the factory of its module, and an example")
    wrapped = _AnyModule(load_custom(artifact, factory, variant=variant.name)).eval()
    return Exportable(
        wrapped,
        {"x": torch.stack([example.float()] * 2)},
        {"x": {0: torch.export.Dim("batch", max=_MOST_BATCH)}},
        "logits",
        _stored(wrapped, variant),
    )


def _stored(module: nn.Module, variant: Variant) -> dict[str, Stored]:
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear):
            scheme = parse_scheme(variant.layers[name.removeprefix(f"{_MODEL}.")])
            found[name] = Stored(weight_of(layer), f"{_MODEL}.{scheme.table}" if scheme.table else "")
    return found
