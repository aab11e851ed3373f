"""Quantizing a model's weights, and what its layers compute with.

`quantize_model` is the simple way, and needs no data: int8, linear layers by output channel, embedding tables by row,
each row with its own scale, rounded to nearest. `quantize` is the stage that does what a recipe says: prepare (smooth,
observe), calibrate, convert. What decides the quality of an answer most is left alone by default: classification heads
and poolers, which are small anyway.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.calibration import calibration_examples
from headrace_workers.compression.quantization.convert import Weight, compensated, nearest, static_ranges
from headrace_workers.compression.quantization.layer_error import output_sqnr_db, weight_sqnr_db
from headrace_workers.compression.quantization.layers import linear_layer
from headrace_workers.compression.quantization.observers import Range
from headrace_workers.compression.quantization.plan import LEFT_ALONE, Plan, half, is_int8, plan_of
from headrace_workers.compression.quantization.smooth import smooth
from headrace_workers.compression.recipe import ActivationScheme, Quantize
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject
from headrace_workers.kernels.layers import QuantizedEmbedding, resident_bytes
from headrace_workers.kernels.schemes import INT8_ROW, scheme_of
from headrace_workers.kernels.weights import tied_weight

__all__ = ["LEFT_ALONE", "QuantizationReport", "quantize", "quantize_model", "round_to_nearest"]

_COMPARED: Final = 16
"""Examples on which layers' outputs are compared."""


@dataclass
class QuantizationReport:
    """What was quantized, and what it saved."""

    schemes: dict[str, str] = field(default_factory=dict)
    """Module name to scheme."""
    skipped: list[str] = field(default_factory=list)
    """Names of the linear layers and tables that were left alone."""
    bytes_before: int = 0
    bytes_after: int = 0

    def describe(self) -> dict[str, Any]:
        """For manifests and `EngineInfo.details`."""
        return {
            "layers": len(self.schemes),
            "skipped": self.skipped,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def round_to_nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to int8 row by row, symmetrically.

    Args:
        weight: floating point [rows, columns].

    Returns:
        int8 [rows, columns] in -127..127, and the scales, float32 [rows]. `values * scale[:, None]` is within half
        a scale of the weight.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / 127.0
    scale = torch.where(scale > 0, scale, 1.0)
    values = (weight / scale[:, None]).round().clamp_(-127, 127).to(torch.int8)
    return values, scale


def quantize_model(
    model: nn.Module, *, left_alone: Sequence[str] = LEFT_ALONE, stage: Quantize | None = None
) -> QuantizationReport:
    """Replace the model's linear layers and large embedding tables, in place, one after the other.

    Args:
        model: any torch module; its weights are let go of as they are replaced.
        left_alone: patterns (`fnmatch`) of the names of modules that are not touched.
        stage: how, in place of `left_alone`; rounded to nearest and never calibrated, whatever it says.
    """
    report = QuantizationReport(bytes_before=resident_bytes(model))
    if stage is None:
        stage = Quantize(left_alone=None if left_alone is LEFT_ALONE else list(left_alone))
    plan = plan_of(model, stage)
    for name, scheme in plan.linears.items():
        _install_linear(model, name, nearest(_linear(model, name), scheme), report)
    _install_tables(model, plan, report)
    report.skipped = plan.skipped
    report.bytes_after = resident_bytes(model)
    return report


def quantize(subject: Subject, stage: Quantize, context: StageContext) -> Subject:
    """Quantize as a recipe says.

    Returns:
        The subject it was given, its layers replaced.

    Raises:
        StageError: a weight or an activation is not finite or too large for its type, or the recipe asks for what the
            model has not; the message names the module.
        CompressionDataError: calibration is asked for, and there is too little to calibrate with.
    """
    _check_finite(subject.module)
    plan = plan_of(subject.module, stage)
    examples = _calibration(plan, stage, context)
    if stage.smooth is not None:
        assert examples is not None
        _smooth(subject, stage.smooth, examples, context)
    weights = _weights(subject, plan, stage, examples, context)
    _tell_worst(subject, weights, context)
    for name, scheme in plan.linears.items():
        if scheme.dtype != "int":
            _store_in_half(subject.module, name, half(scheme.dtype))
    report = QuantizationReport()
    for name in list(weights):
        _install_linear(subject.module, name, weights.pop(name), report)
    _install_tables(subject.module, plan, report)
    _tell(plan, context)
    return subject


def _check_finite(module: nn.Module) -> None:
    for name, tensor in module.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(f"{name} holds NaN or infinity, which no range holds: the model is broken")


def _calibration(plan: Plan, stage: Quantize, context: StageContext) -> Examples | None:
    """The examples to calibrate with, if there is something to calibrate."""
    static = any(scheme.activations.kind == "static" for scheme in plan.linears.values())
    if not static and stage.method == "rtn" and stage.smooth is None:
        return None
    return calibration_examples(context.data.train, stage.calibration.samples, context.seed)


def _smooth(subject: Subject, alpha: float, examples: Examples, context: StageContext) -> None:
    folds = smooth(subject, alpha, examples, context.progress)
    if folds:
        context.note(f"SmoothQuant: the spread of activations moved into weights at {len(folds)} places")
    else:
        context.note("SmoothQuant gained nothing: the model has no place where channels can be scaled exactly")


def _weights(
    subject: Subject, plan: Plan, stage: Quantize, examples: Examples | None, context: StageContext
) -> dict[str, Weight]:
    """The new weights of the linear layers that get whole numbers."""
    schemes = {name: scheme for name, scheme in plan.linears.items() if scheme.dtype == "int"}
    static = {name: scheme.activations for name, scheme in schemes.items() if scheme.activations.kind == "static"}
    ranges: dict[str, Range] = {}
    if static:
        assert examples is not None
        ranges = static_ranges(subject, static, stage.calibration.percentile, examples, context.progress)
    if stage.method == "gptq":
        assert examples is not None
        return compensated(subject, schemes, ranges, examples, context.progress)
    return {name: nearest(_linear(subject.module, name), scheme, ranges.get(name)) for name, scheme in schemes.items()}


def _tell_worst(subject: Subject, weights: Mapping[str, Weight], context: StageContext) -> None:
    """Name the layer that lost most."""
    if not weights:
        return
    if len(context.data.train):
        examples = context.data.train.sample(_COMPARED, seed=context.seed)
        ratios_db, of = output_sqnr_db(subject, weights, examples, context.progress), "outputs"
    else:
        ratios_db = {name: weight_sqnr_db(_linear(subject.module, name).weight, w) for name, w in weights.items()}
        of = "weights"
    worst = min(ratios_db, key=ratios_db.__getitem__)
    median_db = statistics.median(ratios_db.values())
    context.note(
        f"the worst layer is {worst}: {of} at {ratios_db[worst]:.1f} dB SQNR; the median is {median_db:.1f} dB"
    )


def _tell(plan: Plan, context: StageContext) -> None:
    few = [name for name, scheme in plan.linears.items() if scheme.dtype == "int" and not is_int8(scheme)]
    if few:
        context.note(
            f"{len(few)} layers take float32 inputs: n-bit and grouped weights save memory, not multiplications"
        )
    if any(scheme == "static" for _, (_, scheme) in _heads(plan)):
        context.note("a head that is tied to a table has no static range; each of its inputs has its own")


def _heads(plan: Plan) -> list[tuple[str, tuple[str, str]]]:
    return [(head, (table, scheme.kind)) for head, (table, scheme) in plan.heads.items()]


def _install_linear(module: nn.Module, name: str, weight: Weight, report: QuantizationReport) -> None:
    module.set_submodule(name, linear_layer(weight))
    report.schemes[name] = str(scheme_of(weight))


def _install_tables(module: nn.Module, plan: Plan, report: QuantizationReport) -> None:
    for name, kind in plan.tables.items():
        if kind != "int8":
            _store_in_half(module, name, half(kind))
            continue
        table = QuantizedEmbedding(*round_to_nearest(module.get_submodule(name).weight))  # type: ignore[arg-type]
        module.set_submodule(name, table)
        report.schemes[name] = INT8_ROW
    for head, (name, activations) in plan.heads.items():
        _install_head(module, head, name, activations, report)


def _install_head(
    module: nn.Module, head: str, table_name: str, activations: ActivationScheme, report: QuantizationReport
) -> None:
    table = module.get_submodule(table_name)
    assert isinstance(table, QuantizedEmbedding), "a head goes with its table"
    bias = _linear(module, head).bias
    weight = tied_weight(
        table.values,
        table.scale,
        None if bias is None else bias.detach().float(),
        exact_inputs=activations.kind == "none",
    )
    module.set_submodule(head, linear_layer(weight))
    report.schemes[head] = str(scheme_of(weight, table=table_name))


def _store_in_half(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Round a weight to what 16 bits can hold; it is stored in them, and computed with in float32."""
    weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
    rounded = weight.detach().to(dtype).float()
    if not bool(torch.isfinite(rounded).all()):
        raise StageError(f"{name}.weight has values that fp16 cannot hold: use bf16, or leave it alone")
    with torch.no_grad():
        weight.copy_(rounded)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Linear), f"{name} is not a linear layer"
    return found
