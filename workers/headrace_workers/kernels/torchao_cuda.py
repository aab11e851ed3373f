"""Quantized products on NVIDIA GPUs, by torchao where it is installed: float8 or int8 products, int8 or int4 weights.

torchao's names change from release to release, so they are met here and nowhere else (written for 0.18). Activations
are always quantized row by row: a job's answer must not depend on its batch mates. Whether a scheme pays is measured:
without `torch.compile` its many small kernels can cost more than the product saves, and fp16 then stays.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from headrace.errors import ModelLoadError

__all__ = ["CudaScheme", "Trial", "config_of", "convert", "fastest", "refusal", "schemes_for"]

log = logging.getLogger(__name__)

CudaScheme = Literal["float8_dynamic", "int8_dynamic", "int8_weights", "int4_weights"]
"""What is quantized: activations row by row and weights by output, or weights alone (int4: in groups of inputs)."""

Run = Callable[[], Tensor]
_GROUP: Final = 128
_FEATURES_STEP: Final = 16
"""Float8 and int8 products of tensor cores take sizes that this divides."""
_REPEATS: Final = 20


class _Needs(NamedTuple):
    """What a scheme needs."""

    capability: tuple[int, int]
    """The oldest compute capability ("SM") that has it."""
    dtypes: tuple[torch.dtype, ...]
    """What the model may compute in."""


_HALVES: Final = (torch.float16, torch.bfloat16)
_NEEDS: Final[dict[CudaScheme, _Needs]] = {
    "float8_dynamic": _Needs((8, 9), (torch.bfloat16,)),
    "int8_dynamic": _Needs((8, 0), (*_HALVES, torch.float32)),
    "int8_weights": _Needs((8, 0), (*_HALVES, torch.float32)),
    "int4_weights": _Needs((8, 0), (torch.bfloat16,)),
}


class Trial(NamedTuple):
    """What became of one scheme."""

    scheme: str
    seconds: float
    """Of the fastest run; infinite where it failed."""
    distance: float
    """Of its answers from the unquantized model's, relative."""
    problem: str = ""


def refusal(capability: tuple[int, int], dtype: torch.dtype, scheme: CudaScheme) -> str:
    """Why a GPU of this compute capability cannot run a scheme in a model of this dtype; empty if it can."""
    needs = _NEEDS[scheme]
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed (pip install 'torchao==0.18.*')"
    if capability < needs.capability:
        return f"{scheme} needs compute capability {needs.capability}, this GPU has {capability}"
    if dtype not in needs.dtypes:
        return f"{scheme} needs a model in {' or '.join(str(one).removeprefix('torch.') for one in needs.dtypes)}"
    return ""


def schemes_for(capability: tuple[int, int], dtype: torch.dtype) -> tuple[CudaScheme, ...]:
    """The schemes that a GPU can run in a model of this dtype."""
    return tuple(scheme for scheme in _NEEDS if not refusal(capability, dtype, scheme))


def config_of(scheme: CudaScheme, *, group: int = _GROUP) -> Any:
    """torchao's configuration of a scheme.

    Args:
        scheme: what to quantize.
        group: for `int4_weights`, inputs that share a scale: 32, 64, 128 or 256.

    Raises:
        ModelLoadError: torchao is missing, or of a release that names things otherwise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _configs(group)[scheme]()
    except (ImportError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{scheme} needs torchao 0.18 (pip install 'torchao==0.18.*'): {error}") from error


def _configs(group: int) -> dict[CudaScheme, Callable[[], Any]]:
    from torchao import quantization as ao
    from torchao.quantization.quantize_.workflows.int4.int4_choose_qparams_algorithm import Int4ChooseQParamsAlgorithm
    from torchao.quantization.quantize_.workflows.int4.int4_packing_format import Int4PackingFormat

    return {
        "float8_dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        "int8_dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(granularity=ao.PerRow()),
        "int8_weights": lambda: ao.Int8WeightOnlyConfig(granularity=ao.PerRow()),
        "int4_weights": lambda: ao.Int4WeightOnlyConfig(
            group_size=group,
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            int4_choose_qparams_algorithm=Int4ChooseQParamsAlgorithm.HQQ,
        ),
    }


def convert(module: nn.Module, scheme: CudaScheme, *, group: int = _GROUP) -> list[str]:
    """Quantize the linear layers of a model in place.

    Weights that an artifact holds in int8 with a scale for each output come out as the very same codes.

    Args:
        module: its linear layers plain (`expand_model`), on the device and in the dtype that it will run in.
        scheme: what to quantize.
        group: as in `config_of`.

    Returns:
        Names of the layers that were quantized; those whose sizes no tensor core takes are left alone.

    Raises:
        ModelLoadError: torchao is missing or of another release, or there is no layer that it could quantize.
    """
    config = config_of(scheme, group=group)
    from torchao.quantization import quantize_

    names = [name for name, layer in module.named_modules() if _takes(layer, scheme, group)]
    if not names:
        raise ModelLoadError(f"{scheme}: no linear layer has sizes that {_FEATURES_STEP} divides")
    wanted = set(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(module, config, filter_fn=lambda _layer, name: name in wanted)
    return names


def _takes(layer: nn.Module, scheme: CudaScheme, group: int) -> bool:
    if not isinstance(layer, nn.Linear):
        return False
    step = group if scheme == "int4_weights" else _FEATURES_STEP
    return layer.in_features % step == 0 and layer.out_features % _FEATURES_STEP == 0


def fastest(
    module: nn.Module,
    schemes: Sequence[CudaScheme],
    bind: Callable[[nn.Module], Run],
    *,
    tolerance: float,
    group: int = _GROUP,
) -> tuple[nn.Module, list[Trial]]:
    """Try schemes on copies of a model and keep the fastest that still answers like it.

    Args:
        module: on its GPU; not changed.
        schemes: what to try.
        bind: makes of a model a function that runs an example through it, as it will be run.
        tolerance: the largest relative distance of a scheme's answers from the model's own.
        group: as in `config_of`.

    Returns:
        The fastest model, which is `module` itself where no scheme is faster, and what was found; `module` first.
    """
    run = bind(module)
    expected = run()
    best, best_s = module, _seconds(run)
    trials = [Trial("unquantized", best_s, 0.0)]
    for scheme in schemes:
        candidate, trial = _try(module, scheme, bind, expected, tolerance, group)
        trials.append(trial)
        if candidate is not None and trial.seconds < best_s:
            best, best_s = candidate, trial.seconds
    for trial in trials:
        log.info("%s: %.3g s, off by %.2g %s", *trial)
    return best, trials


def _try(
    module: nn.Module,
    scheme: CudaScheme,
    bind: Callable[[nn.Module], Run],
    expected: Tensor,
    tolerance: float,
    group: int,
) -> tuple[nn.Module | None, Trial]:
    failed = float("inf")
    try:
        candidate = copy.deepcopy(module)
        convert(candidate, scheme, group=group)
        run = bind(candidate)
        off = float((run() - expected).norm() / expected.norm().clamp_min(1e-12))
        if not off < tolerance:  # NaN, too
            return None, Trial(scheme, failed, off, "its answers are too far off")
        return candidate, Trial(scheme, _seconds(run), off)
    except Exception as error:  # what a release of torchao cannot do on a GPU it says in many ways
        return None, Trial(scheme, failed, failed, f"{type(error).__name__}: {error}")


def _seconds(run: Run) -> float:
    """The best of some runs, each waited for."""
    best_s = float("inf")
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        result = run()
        if result.is_cuda:
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s
