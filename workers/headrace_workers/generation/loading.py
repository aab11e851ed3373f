"""From a model's files to a runner: native where the model has the shape for it, transformers' own module elsewhere.

The native runner has tests of its own and takes only shapes that it knows. The torch runner takes what it has never
seen, so it is tried at every load: in full precision, where rounding hides no mistake, it must answer as the module
does. Only then is the precision changed, and whether answers are exact in any company is measured, not hoped for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.errors import ModelLoadError
from headrace_workers import node
from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.compression.recipe import ActivationScheme, Quantize, WeightScheme
from headrace_workers.generation.native_runner import NativeRunner, native_refusal
from headrace_workers.generation.page_budget import kv_pages
from headrace_workers.generation.runner import DecoderRunner
from headrace_workers.generation.runner_check import (
    Cuts,
    allocate_for,
    distance,
    greedy,
    halves,
    is_exact,
    last_by_one,
    logits_by_module,
    logits_by_runner,
    probes_of,
)
from headrace_workers.generation.torch_runner import TorchRunner, most_positions
from headrace_workers.kernels.attention import UnsupportedAttentionError
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedLinear, prepare_layers
from headrace_workers.kernels.selection import (
    BUCKETS,
    AnyKernel,
    AnyWeight,
    Choice,
    KernelTable,
    Policy,
    sound_affine_kernels,
)
from headrace_workers.kernels.torchao_cuda import CudaScheme, fastest, refusal, schemes_for
from headrace_workers.kernels.weights import Int8Weight
from headrace_workers.models.loading import LoadedModel, load_model, max_tokens_of, quiet_transformers
from headrace_workers.models.preparing import Device
from headrace_workers.models.source import ModelSource

__all__ = ["DecoderPrecision", "kv_pages", "load_decoder"]

log = logging.getLogger(__name__)

DecoderPrecision = Literal["int8", "int4", "fp32", "bf16", "fp16"]

_TOLERANCE: Final = 2e-4
"""Relative distance allowed between a runner and its module in float32. Rounding alone gives about 1e-6."""
_GPU_TOLERANCE: Final = 0.05
"""The same between a GPU in 16 bits and fp32 on the CPU, for logits; an overflow gives NaN."""
_GPU_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}
"""What GPUs compute in; bf16 for everything else, since activations of language models overflow fp16."""
_SCHEMES_OF: Final[dict[str, tuple[CudaScheme, ...]]] = {
    "int8": ("int8_dynamic", "int8_weights"),
    "int4": ("int4_weights",),
}
_GROUP: Final = 32
"""Columns that share a scale in 4-bit weights, as in the files of llama.cpp."""
_LEFT_ALONE: Final = ("*.gate", "*router*", "*wpe", "*position*")
"""What decides much and weighs little: which expert computes, where a token stands."""
_GREEDY_TOKENS: Final = 4


@dataclass(frozen=True)
class _Plan:
    """What to load and how."""

    model: LoadedModel
    precision: DecoderPrecision
    kernels: Policy
    max_positions: int
    probes: list[NDArray[np.int32]]

    @property
    def module(self) -> nn.Module:
        """What transformers made of the files."""
        return self.model.module


def load_decoder(
    source: ModelSource,
    *,
    precision: DecoderPrecision = "int8",
    variant: str | None = None,
    kernels: Policy = "measured",
    device: Device = "cpu",
    max_tokens: int | None = None,
) -> tuple[DecoderRunner, dict[str, Any]]:
    """Load a language model and choose what runs it.

    Args:
        source: its files.
        precision: what to compute in. A plain model is quantized as it is loaded; one that is compressed stays as it
            is, and is asked for as int8 or int4.
        variant: which variant of an artifact.
        kernels: which kernels the torch runner has: `measured` is the best sound ones for the weights as they are,
            `int8` rounds weights of few bits once more, `fp32` keeps the native runner away, too.
        device: where it runs.
        max_tokens: the longest sequence; None: the model's own limit.

    Returns:
        The runner, its pages not yet allocated, and what became of the model, for `EngineInfo.details`.

    Raises:
        ModelLoadError: it cannot be loaded, the precision would be emulated here, neither runner answers as the model
            does, or its logits are not finite.
        ArtifactError: the artifact is broken.
    """
    _check_device(precision, device)
    model = load_model(source, source.task("causal_lm"), variant=variant)
    if model.task != "causal_lm":
        raise ModelLoadError(f"{source.name} is made for {model.task}; a decoder needs a causal language model")
    if model.compressed and precision not in ("int8", "int4"):
        raise ModelLoadError(f"{source.name} is compressed and cannot be had in {precision}; load what it was made of")
    _check_finite(source, model.module)
    with quiet_transformers():
        plan = _plan(source, model, precision, kernels, max_tokens)
        runner, details = _on_gpu(plan) if device == "cuda" else _on_cpu(plan)
        _check_sane(source, runner, plan.probes[0])
    node.give_memory_back()
    log.info("%s runs on the %s runner", source.name, runner.info.details.get("runner"))
    return runner, {"precision": precision, **runner.info.details, **details}


def _check_finite(source: ModelSource, module: nn.Module) -> None:
    """Rounded to whole numbers, NaN would become a weight like any other."""
    for name, tensor in module.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(f"{source.name}: {name} holds NaN or infinity: the model is broken")


def _check_device(precision: DecoderPrecision, device: Device) -> None:
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ModelLoadError("a pool with gpus needs a GPU and a torch built for it; this process sees no GPU")
    elif precision == "fp16":
        raise ModelLoadError("fp16 is for GPUs, and emulated here; use int8 or fp32")
    elif precision == "bf16" and not node.capabilities().bf16:
        raise ModelLoadError("this processor has no bf16 instructions and would emulate them; use int8 or fp32")


def _plan(
    source: ModelSource, model: LoadedModel, precision: DecoderPrecision, kernels: Policy, max_tokens: int | None
) -> _Plan:
    try:
        limit = min(max_tokens or max_tokens_of(source, model), most_positions(model.config))
    except UnsupportedAttentionError as error:
        raise ModelLoadError(f"{source.name} cannot be run: {error}") from error
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    probes = probes_of(text.vocab_size, limit, [window] if isinstance(window, int) else [])
    return _Plan(model, precision, kernels, limit, probes)


# -- on a CPU -------------------------------------------------------------------------------------------


def _on_cpu(plan: _Plan) -> tuple[DecoderRunner, dict[str, Any]]:
    details = _quantize(plan)
    reason = _not_native(plan)
    if not reason:
        return NativeRunner(plan.module, max_positions=plan.max_positions), details
    log.info("not on the native runner: %s", reason)
    runner = _tried(plan)
    details["not_native_because"] = reason
    if plan.precision in ("int8", "int4"):
        details["kernels"] = _prepare_layers(plan.module, plan.kernels)
    elif plan.precision == "bf16":
        plan.module.to(torch.bfloat16)
        runner = TorchRunner(plan.module, dtype=torch.bfloat16, max_positions=plan.max_positions)
    runner.info = replace(runner.info, exact=runner.info.exact and is_exact(runner, plan.probes))
    return runner, details


def _not_native(plan: _Plan) -> str:
    if plan.precision not in ("int8", "int4"):
        return f"{plan.precision} is asked for; it computes with weights of 8 bits or fewer"
    return "kernels in fp32 are asked for" if plan.kernels == "fp32" else native_refusal(plan.module)


def _quantize(plan: _Plan) -> dict[str, Any]:
    """Round a plain model's weights as its precision says."""
    if plan.model.compressed or plan.precision not in ("int8", "int4"):
        return {}
    _use_linears(plan.module)
    return {"quantized": quantize_model(plan.module, stage=_stage(plan.module, plan.precision)).describe()}


def _stage(module: Any, precision: DecoderPrecision) -> Quantize:
    if precision == "int8":
        return Quantize(left_alone=list(_LEFT_ALONE))
    weights = WeightScheme(bits=4, group=_GROUP, symmetric=False, activations=ActivationScheme(kind="none"))
    head = module.get_output_embeddings()
    heads = [name for name, part in module.named_modules() if part is head and type(part) is nn.Linear]
    return Quantize(weights=weights, left_alone=list(_LEFT_ALONE), overrides={name: WeightScheme() for name in heads})


def _use_linears(module: nn.Module) -> None:
    """GPT-2's layers are linear, written the other way round; as such they can be quantized."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(module.named_modules()):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(layer.nx, layer.nf, device="meta")
            linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
            linear.bias = layer.bias
            module.set_submodule(name, linear)


def _tried(plan: _Plan) -> TorchRunner:
    """A torch runner in full precision that answers as the module does.

    Raises:
        ModelLoadError: it does not.
    """
    _bind_plain(plan.module)
    expected = logits_by_module(plan.module, plan.probes)
    name = type(plan.module).__name__
    try:
        runner = TorchRunner(plan.module, max_positions=plan.max_positions)
        off = max(distance(_answers(runner, plan.probes, cuts), expected) for cuts in (halves, last_by_one))
    except Exception as error:  # an architecture can stumble over packed tokens in any way
        raise ModelLoadError(f"{name} cannot be run in steps: {type(error).__name__}: {error}") from error
    if not off < _TOLERANCE:  # NaN, too
        raise ModelLoadError(f"{name} cannot be run in steps: in pieces and whole, its logits differ by {off:.2g}")
    return runner


def _prepare_layers(module: nn.Module, policy: Policy) -> dict[str, Any]:
    """Give quantized layers their kernels: the most promising sound ones, never fp32 because it was faster just now.

    Replicas that measured differently would answer differently, and one must go on where another was cut off.
    """
    table = KernelTable(policy)
    for layer in module.modules():
        if isinstance(layer, CompressedLinear | AffineLinear) and policy == "measured" and layer.source is not None:
            _fix_choice(table, layer.source)
    prepare_layers(module, table)
    return table.describe()


def _fix_choice(table: KernelTable, weight: AnyWeight) -> None:
    kernels: Sequence[AnyKernel] = table.kernels if isinstance(weight, Int8Weight) else sound_affine_kernels()
    able = [kernel for kernel in kernels if not kernel.refusal(weight.shape)]
    if able and weight.shape not in table.choices:
        table.choices[weight.shape] = Choice((able[0],) * len(BUCKETS), able[0].numerics(weight.shape))


def _bind_plain(module: nn.Module) -> None:
    """Have quantized layers compute with their weights in float32, none of them released."""
    table = KernelTable("fp32", kernels=())
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.prepare(table)


def _answers(runner: DecoderRunner, probes: Sequence[NDArray[np.int32]], cuts: Cuts) -> list[Tensor]:
    allocate_for(runner, probes)
    return logits_by_runner(runner, probes, cuts)


def _check_sane(source: ModelSource, runner: DecoderRunner, prompt: NDArray[np.int32]) -> None:
    _, finite = greedy(runner, prompt, _GREEDY_TOKENS)
    if not finite:
        raise ModelLoadError(f"{source.name} gives logits that are not finite: its weights are broken, or overflow")


# -- on a GPU -------------------------------------------------------------------------------------------


def _on_gpu(plan: _Plan) -> tuple[DecoderRunner, dict[str, Any]]:
    details = _quantize(plan)
    expand_model(plan.module)
    expected = _answers(_tried(plan), plan.probes, last_by_one)
    dtype = _GPU_DTYPES.get(plan.precision, torch.bfloat16)
    plan.model.to(torch.device("cuda"), dtype)
    if plan.precision in _SCHEMES_OF and plan.kernels == "measured":
        details["torchao"] = _take_fastest(plan, dtype)
    runner = _gpu_runner(plan, plan.module, dtype)
    off = distance(_answers(runner, plan.probes, last_by_one), expected)
    if not off < _GPU_TOLERANCE:  # NaN, too
        raise ModelLoadError(f"on the GPU in {dtype} its logits are off by {off:.2g}; use bf16 or fp32")
    runner.info = replace(runner.info, exact=is_exact(runner, plan.probes))
    gpu = {"gpu": torch.cuda.get_device_name(), "computes_in": str(dtype).removeprefix("torch.")}
    return runner, details | gpu | {"distance_to_fp32": off}


def _gpu_runner(plan: _Plan, module: nn.Module, dtype: torch.dtype, *, graphs: bool = True) -> TorchRunner:
    return TorchRunner(module, device="cuda", dtype=dtype, max_positions=plan.max_positions, graphs=graphs)


def _take_fastest(plan: _Plan, dtype: torch.dtype) -> dict[str, Any]:
    """Give the model torchao's products if they decode faster on this GPU, and say what was found."""
    capability = torch.cuda.get_device_capability()
    able = [scheme for scheme in _SCHEMES_OF[plan.precision] if scheme in schemes_for(capability, dtype)]
    if not able:
        return {"reason": refusal(capability, dtype, _SCHEMES_OF[plan.precision][0])}

    def bind(module: nn.Module) -> Callable[[], Tensor]:
        runner = _gpu_runner(plan, module, dtype)
        allocate_for(runner, plan.probes)
        return lambda: torch.cat(logits_by_runner(runner, plan.probes, last_by_one))

    plan.model.module, trials = fastest(plan.module, able, bind, tolerance=_GPU_TOLERANCE, group=_GROUP)
    return {
        trial.scheme: trial.problem or f"{trial.seconds * 1000:.3g} ms"
        for trial in trials
        if trial.problem or math.isfinite(trial.seconds)
    }
