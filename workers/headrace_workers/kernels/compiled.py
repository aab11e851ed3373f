"""Whole modules compiled ahead of time (AOTInductor): an option for models that are none of ours to fuse by hand.

Compiling needs a C++ compiler and minutes; loading needs neither. What comes out is machine code of one processor and
one torch, so it stands beside an artifact, never in it, in a folder named after both, and is loaded only where the
operator's own configuration says so: opening a `.pt2` runs what is in it. It serves only if its answers are the
module's and it was measured faster.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from headrace.errors import StageError

__all__ = ["CompiledChoice", "choose_compiled", "compile_module", "compiled_path", "node_key"]

log = logging.getLogger(__name__)

_MOST_ROWS: Final = 1 << 20
_PAIRS: Final = 15
_TOLERANCE: Final = 1e-4
"""Relative distance allowed between the module's answers and the compiled module's, in float32: rounding alone."""

Run = Callable[..., Tensor]


class CompiledChoice(NamedTuple):
    """What serves a module, and why."""

    run: Run
    """The module itself, or its compiled form."""
    compiled: bool
    reason: str
    """Why it is not the compiled form; empty if it is."""
    speedup: float = math.nan
    """Of the compiled form over the module, the least of all examples; NaN where it was not measured."""

    def describe(self) -> dict[str, Any]:
        """For `EngineInfo.details`."""
        speedup = {} if math.isnan(self.speedup) else {"speedup": round(self.speedup, 2)}
        return {"compiled": self.compiled, **({"reason": self.reason} if self.reason else {}), **speedup}


def node_key() -> str:
    """Which nodes can share compiled code: `<instruction set>-<digest of the processor's features>-<torch>`."""
    found = torch.cpu.get_capabilities()
    flags = sorted(name for name, has in found.items() if has is True)
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    return f"{torch.backends.cpu.get_cpu_capability().lower()}-{digest}-torch{torch.__version__}"


def compiled_path(artifact: Path) -> Path:
    """Where an artifact's compiled form for this node stands: beside the artifact, whose own files never change."""
    return artifact.parent / f"{artifact.name}.compiled" / node_key() / "model.pt2"


def compile_module(module: nn.Module, example: Sequence[Tensor], path: Path) -> Path:
    """Compile a module for this node.

    Args:
        module: float32, on the CPU; what it computes must be traceable by `torch.export`.
        example: its inputs, of two rows or more; the first dimension of all of them is the batch, of any length later.
        path: where the package goes; it appears there whole or not at all.

    Raises:
        StageError: there is no C++ compiler, or torch cannot trace or compile the module; nothing is left behind.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise StageError("compiling needs a C++ compiler on this node (g++, or the one that CXX names)")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        _compile(module, example, draft)
        draft.rename(path)
    except Exception as error:  # tracing and compiling fail in as many ways as there are modules
        raise StageError(f"{type(module).__name__} cannot be compiled: {type(error).__name__}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _compile(module: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=_MOST_ROWS)
    # Without headers compiled beforehand: they pay from the second module on, and there is one.
    settings = {"freezing": True, "aot_inductor.precompile_headers": False}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own parts
        program = torch.export.export(module.eval(), tuple(example), dynamic_shapes=(tuple({0: rows} for _ in example)))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def choose_compiled(
    module: nn.Module, path: Path, examples: Sequence[Sequence[Tensor]], *, allowed: bool
) -> CompiledChoice:
    """The compiled form of a module if it may be loaded, answers like it and is faster; else the module.

    Args:
        module: what was compiled, in eval mode.
        path: as given to `compile_module`; need not exist.
        examples: inputs of the batch lengths that will be served.
        allowed: whether the operator's configuration asks for compiled code. Nothing is opened without it: a package
            is executable, and an artifact must not be able to bring one along.
    """
    if not allowed:
        return CompiledChoice(module, False, "compiled code is not asked for (compiled: true)")
    if not path.is_file():
        return CompiledChoice(module, False, f"nothing is compiled for this node: there is no {path}")
    try:
        compiled: Run = torch._inductor.aoti_load_package(str(path))
        off = max(_distance(compiled(*example), module(*example)) for example in examples)
    except Exception as error:  # a package of another build fails in ways of its own
        return _refused(module, f"{path} cannot be used: {type(error).__name__}: {error}")
    if not off < _TOLERANCE:  # NaN, too
        return _refused(module, f"its answers are off by {off:.2g}: was it compiled from another model?")
    speedup = min(_speedup(module, compiled, example) for example in examples)
    if speedup <= 1:
        return CompiledChoice(module, False, "it is not faster", speedup)
    return CompiledChoice(compiled, True, "", speedup)


def _refused(module: nn.Module, reason: str) -> CompiledChoice:
    log.warning("the compiled module is not used: %s", reason)
    return CompiledChoice(module, False, reason)


def _distance(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    return float((got - expected).norm() / expected.norm().clamp_min(1e-12))


def _speedup(module: Run, compiled: Run, example: Sequence[Tensor]) -> float:
    """The median ratio of pairs, run in turn so that a slow moment slows both."""
    ratios = []
    for _ in range(_PAIRS):
        seconds = []
        for run in (module, compiled):
            started_s = time.perf_counter()
            run(*example)
            seconds.append(time.perf_counter() - started_s)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
