"""Making a loaded model ready to run on this node: packed if it can be, quantized, on measured kernels, fused.

The order matters. Whether packing is right is asked in full precision, where rounding cannot hide a mistake; only then
are weights quantized, kernels chosen and blocks fused, each with a check of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from headrace.errors import ModelLoadError
from headrace_workers import node
from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.kernels.block import fuse_blocks
from headrace_workers.kernels.layers import QuantizedLinear
from headrace_workers.kernels.library import support
from headrace_workers.kernels.selection import KernelTable, Policy
from headrace_workers.kernels.torchao_cuda import fastest, refusal, schemes_for
from headrace_workers.models.loading import LoadedModel
from headrace_workers.models.runner import Ids, PackedRunner, Runner, SingleRunner, can_pack, distance

__all__ = ["Device", "Precision", "prepare_model"]

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]
Precision = Literal["int8", "fp32", "bf16", "fp16"]

_GPU_DTYPES: Final = {
    "int8": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What a GPU computes in. Weights in int8 are expanded: at the sizes of encoders its fp16 products are as fast."""
_GPU_TOLERANCE: Final = 0.05
"""Relative distance allowed between a GPU's answers and fp32 on the CPU. Rounding gives about 2e-3, an overflow NaN."""
_PROBES_TOGETHER: Final = 8
"""How often the probes are repeated to make a batch that is worth measuring."""


def prepare_model(
    model: LoadedModel, probes: Sequence[Ids], *, precision: Precision, kernels: Policy, device: Device = "cpu"
) -> tuple[Runner, dict[str, Any]]:
    """Make a model ready to run.

    Args:
        model: changed in place.
        probes: texts to check it with, as token ids, of different lengths.
        precision: what to compute in; a compressed model has int8 already.
        kernels: how kernels are chosen.
        device: where it runs; on a GPU `measured` tries torchao's kernels where it is installed, and keeps the faster.

    Returns:
        What runs it, and what became of it, for `EngineInfo.details`.

    Raises:
        ModelLoadError: a precision that the device would emulate, a compressed model in anything but int8, no GPU
            where one is asked for, or one that answers otherwise than the CPU.
    """
    _check_precision(model, precision, device)
    if model.compressed:
        _bind(model, KernelTable("fp32", kernels=()))
    problem = can_pack(model, probes)
    details: dict[str, Any] = {"precision": precision, "packed": not problem}
    if problem:
        details["not_packed_because"] = problem
    if device == "cuda":
        return _on_gpu(model, probes, precision, problem, details, measure=kernels == "measured")
    if precision == "int8":
        details |= _compress(model, kernels, fuse=not problem)
    elif precision == "bf16":
        model.module.to(torch.bfloat16)
    runner = _runner(model, problem)
    details["batch_invariant"] = _is_batch_invariant(runner, probes)
    return runner, details


def _runner(model: LoadedModel, problem: str) -> Runner:
    return SingleRunner(model) if problem else PackedRunner(model)


def _on_gpu(
    model: LoadedModel,
    probes: Sequence[Ids],
    precision: Precision,
    problem: str,
    details: dict[str, Any],
    *,
    measure: bool,
) -> tuple[Runner, dict[str, Any]]:
    expected, counts = _runner(model, problem)(probes)
    if precision == "int8":
        if not model.compressed:
            details["quantized"] = quantize_model(model.module).describe()
        expand_model(model.module)
    dtype = _GPU_DTYPES[precision]
    model.to(torch.device("cuda"), dtype)
    if precision == "int8" and measure:
        details["torchao"] = _take_fastest(model, list(probes) * _PROBES_TOGETHER, dtype, problem)
    runner = _runner(model, problem)
    off = distance(runner(probes)[0].cpu(), expected, counts)
    if not off < _GPU_TOLERANCE:  # NaN, too
        raise ModelLoadError(f"on the GPU in {dtype} its answers are off by {off:.2g}; use bf16 or fp32")
    details |= {
        "gpu": torch.cuda.get_device_name(),
        "computes_in": str(dtype).removeprefix("torch."),
        "distance_to_fp32": off,
        "batch_invariant": _is_batch_invariant(runner, probes),
    }
    return runner, details


def _take_fastest(model: LoadedModel, probes: Sequence[Ids], dtype: torch.dtype, problem: str) -> dict[str, Any]:
    """Give the model torchao's int8 products if they are faster on this GPU, and say what was found."""
    able = schemes_for(torch.cuda.get_device_capability(), dtype)
    schemes = [scheme for scheme in able if scheme.startswith("int8")]
    if not schemes:
        return {"reason": refusal(torch.cuda.get_device_capability(), dtype, "int8_dynamic")}

    def bind(module: nn.Module) -> Callable[[], Tensor]:
        runner = _runner(replace(model, module=module), problem)
        return lambda: runner(probes)[0]

    model.module, trials = fastest(model.module, schemes, bind, tolerance=_GPU_TOLERANCE)
    return {trial.scheme: trial.problem or f"{trial.seconds * 1000:.3g} ms" for trial in trials}


def _check_precision(model: LoadedModel, precision: Precision, device: Device) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("a pool with gpus needs a GPU and a torch built for it; this process sees no GPU")
    if model.compressed and precision != "int8":
        raise ModelLoadError(
            f"the model is compressed to int8 and cannot be had in {precision}; load what it was made of"
        )
    if device == "cuda":
        return
    if precision == "fp16":
        raise ModelLoadError("fp16 is for GPUs, and emulated here; use int8 or fp32")
    if precision == "bf16" and not node.capabilities().bf16:
        raise ModelLoadError("this processor has no bf16 instructions and would emulate them; use int8 or fp32")


def _bind(model: LoadedModel, table: KernelTable) -> None:
    for layer in _layers(model):
        layer.prepare(table)


def _layers(model: LoadedModel) -> list[QuantizedLinear]:
    return [module for module in model.module.modules() if isinstance(module, QuantizedLinear)]


def _compress(model: LoadedModel, policy: Policy, *, fuse: bool) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if not model.compressed:
        details["quantized"] = quantize_model(model.module).describe()
    table = KernelTable(policy)
    _bind(model, table)
    blocks = fuse_blocks(model.module, table) if fuse else {"fused_blocks": 0, "reason": "texts run one by one"}
    for layer in _layers(model):
        layer.release()
    native = support()
    return details | {
        "isa": str(native.best),
        "isa_reason": native.reason,
        "kernels": table.describe(),
        "blocks": blocks,
    }


def _is_batch_invariant(runner: Runner, probes: Sequence[Ids]) -> bool:
    """Whether every probe gets the same bits in company as alone."""
    together, counts = runner(probes)
    alone = [runner([probe])[0] for probe in probes]
    same = all(torch.equal(a, b) for a, b in zip(torch.split(together, counts), alone, strict=True))
    if not same:
        log.info("answers depend on the batch in their last digits: %s", "some layers run in floating point")
    return same
