"""From a model to an artifact. One stage so far, quantization; the others will stand before it in `lineage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from headrace.errors import ModelLoadError
from headrace_workers.artifact import Artifact, Source, Task, VariantContent, sha256_of, write_artifact
from headrace_workers.compression.quantize import LEFT_ALONE, QuantizationReport, quantize_model
from headrace_workers.kernels.layers import CompressedLinear, QuantizedEmbedding
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import ModelSource, find_source
from headrace_workers.models.tokenizer import serialized_tokenizer

__all__ = ["build_artifact"]

_COPIED: Final = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def build_artifact(
    model: str | Path, destination: str | Path, *, task: Task | None = None, left_alone: Sequence[str] = LEFT_ALONE
) -> Artifact:
    """Quantize a model to int8 and write it as an artifact with the one variant `int8`.

    Args:
        model: a Hugging Face folder or a hub id.
        destination: a directory that must not exist yet.
        task: what the model will be used for; None: what its files say.
        left_alone: patterns of the names of modules that keep full precision.

    Raises:
        ModelLoadError: the model cannot be loaded, or is an artifact already.
        ArtifactError: there is something at `destination`.
    """
    source = find_source(model)
    if source.artifact is not None:
        raise ModelLoadError(f"{model} is an artifact already")
    chosen = source.task(task)
    loaded = load_model(source, chosen)
    report = quantize_model(loaded.module, left_alone=left_alone)
    return write_artifact(
        destination,
        task=chosen,
        source=Source(name=source.name, sha256=sha256_of(*sorted(source.folder.glob("*.safetensors")))),
        files=_files(source),
        variants={"int8": VariantContent(_tensors(loaded.module), report.schemes)},
        lineage=["quantize: int8, round to nearest, per output channel and per embedding row"],
        metrics=_metrics(report),
    )


def _files(source: ModelSource) -> dict[str, bytes]:
    """Everything but the weights: configuration, tokenizer, pooling."""
    files = {name: (source.folder / name).read_bytes() for name in _COPIED if (source.folder / name).is_file()}
    files["tokenizer.json"] = serialized_tokenizer(source)
    for module in source.read_json("modules.json") or []:
        folder = str(module["path"])
        for name in ("config.json", "model.safetensors"):
            path = source.folder / folder / name
            if folder and path.is_file():
                files[f"{folder}/{name}"] = path.read_bytes()
    return files


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a quantized model, by the names a variant gives them."""
    tensors: dict[str, Tensor] = dict(module.state_dict())
    for name, part in module.named_modules():
        if isinstance(part, QuantizedEmbedding):
            tensors[f"{name}.weight"] = tensors.pop(f"{name}.values")
            tensors[f"{name}.weight_scale"] = tensors.pop(f"{name}.scale")
        elif isinstance(part, CompressedLinear):
            assert part.source is not None, "a released layer cannot be stored"
            tensors |= {f"{name}.weight": part.source.values, f"{name}.weight_scale": part.source.scale}
            if part.source.bias is not None:
                tensors[f"{name}.bias"] = part.source.bias
    return tensors


def _metrics(report: QuantizationReport) -> dict[str, float]:
    return {
        "bytes_before": float(report.bytes_before),
        "bytes_after": float(report.bytes_after),
        "layers_quantized": float(len(report.schemes)),
    }
