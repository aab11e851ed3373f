"""How long every kind of linear layer takes on this node: measured once, kept as JSON, added up for any model.

Most of an encoder's time goes into its linear layers, so that the sum of theirs ranks candidates that nobody has
built yet (ZipLM, arXiv 2302.04089), and ranks those of another node's search anew on this one. What it leaves out
(attention, norms) makes its ratios too bright; one measured model tells how much that is, and finalists are measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import StageError

__all__ = [
    "BULK_ROWS",
    "Kernel",
    "LatencyTable",
    "LinearUse",
    "Node",
    "Timing",
    "load_table",
    "measure_shapes",
    "probe_node",
    "uses_of",
]

BULK_ROWS: Final = 512
"""Tokens that a busy engine computes at once: the bucket in which throughput is decided."""

_PROCESSORS: Final = Path("/proc/cpuinfo")
_SECONDS_EACH: Final = 0.03
"""For one shape and length: enough for a median of pairs, and a table of twenty shapes in ten seconds."""

Kernel = Literal["fp32", "int8"]
"""`int8` is the fastest sound int8 kernel of the node, or fp32 where none is faster: what a replica would run."""

Measure = Callable[[Sequence[tuple[int, int]], int], Iterable["Timing"]]
"""Takes shapes (inputs, outputs) and threads."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(_Part):
    """What decides how fast a kernel is."""

    processor: str
    architecture: str
    flags: list[str]
    isa: str
    """Of the native kernels; `none` where only torch's run."""
    cores: int
    threads: int
    """Compute threads of one replica."""
    torch: str
    headrace: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: tables of one fingerprint may stand for each other."""
        content = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class LinearUse(NamedTuple):
    """Linear layers of one shape, as a model has them."""

    inputs: int
    outputs: int
    kernel: Kernel
    layers: int = 1
    """How many of them."""


class Timing(_Part):
    """One shape at one number of rows."""

    inputs: Annotated[int, Field(ge=1)]
    outputs: Annotated[int, Field(ge=1)]
    rows: Annotated[int, Field(ge=1)]
    fp32_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    int8_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Of the kernel that would be used, fp32 included."""
    int8_kernel: str


class LatencyTable(_Part):
    """All that was measured on one node."""

    schema_version: Literal[1] = 1
    node: Node
    timings: list[Timing] = []

    def total_ms(self, uses: Iterable[LinearUse], rows: int = BULK_ROWS) -> float:
        """What a model's linear layers take for `rows` tokens.

        Raises:
            StageError: a shape was not measured.
        """
        known = self._by_shape()
        total = 0.0
        for use in uses:
            timing = known.get((use.inputs, use.outputs, rows))
            if timing is None:
                raise StageError(f"no timing of {use.inputs}x{use.outputs} at {rows} rows; extend the table first")
            total += use.layers * (timing.int8_ms if use.kernel == "int8" else timing.fp32_ms)
        return total

    def speedup(
        self, uses: Iterable[LinearUse], over: Iterable[LinearUse], *, rest_ms: float = 0.0, share: float = 1.0
    ) -> float:
        """How many times as fast a model with the layers `uses` is as one with `over`; 1 where there is nothing.

        Args:
            uses: the linear layers of the one.
            over: those of the other.
            rest_ms: what everything else takes the other one (`rest_ms`).
            share: of that rest, what is left for the one.
        """
        before, after = self.total_ms(over) + rest_ms, self.total_ms(uses) + rest_ms * share
        return before / after if after > 0 else 1.0

    def rest_ms(self, uses: Iterable[LinearUse], over: Iterable[LinearUse], measured: float) -> float:
        """What a model does besides its linear layers, told from a measured speedup of `uses` over `over`.

        Both do the same besides. Nothing is told, and 0 returned, where the speedup is none or better than predicted.
        """
        before, after = self.total_ms(over), self.total_ms(uses)
        return max(0.0, (before - measured * after) / (measured - 1)) if measured > 1 else 0.0

    def extended(self, uses: Iterable[LinearUse], measure: Measure) -> LatencyTable:
        """This table, and the shapes that it lacks, measured now."""
        known = {(timing.inputs, timing.outputs) for timing in self.timings}
        lacking = sorted({(use.inputs, use.outputs) for use in uses} - known)
        if not lacking:
            return self
        return self.model_copy(update={"timings": [*self.timings, *measure(lacking, self.node.threads)]})

    def write(self, folder: Path) -> Path:
        """Keep it in a folder, in a file of the node's own; all of it appears, or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.node.fingerprint}.json"
        draft = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
        draft.write_text(self.model_dump_json(indent=1), "utf-8")
        draft.replace(path)
        return path

    def _by_shape(self) -> dict[tuple[int, int, int], Timing]:
        return {(timing.inputs, timing.outputs, timing.rows): timing for timing in self.timings}


def load_table(folder: Path, node: Node) -> LatencyTable:
    """The table that a folder keeps for a node; an empty one where there is none, or none that can be read."""
    path = folder / f"{node.fingerprint}.json"
    try:
        table = LatencyTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return LatencyTable(node=node)
    return table if table.node == node else LatencyTable(node=node)


def probe_node(threads: int) -> Node:
    """This node, for replicas of so many threads."""
    import torch

    from headrace._version import __version__
    from headrace_workers import node
    from headrace_workers.kernels.library import support

    found = node.capabilities()
    return Node(
        processor=_processor(),
        architecture=found.architecture,
        flags=sorted(found.flags),
        isa=str(support().best),
        cores=found.cores,
        threads=threads,
        torch=str(torch.__version__),
        headrace=__version__,
    )


def measure_shapes(shapes: Sequence[tuple[int, int]], threads: int) -> list[Timing]:
    """Time shapes (inputs, outputs) at every bucket of batch lengths, int8 and fp32 in turn."""
    from headrace_workers.kernels.benchmark import bench_kernels
    from headrace_workers.kernels.selection import BUCKETS

    found = bench_kernels(shapes, rows=BUCKETS, threads=threads, seconds_each=_SECONDS_EACH)
    return [
        Timing(
            inputs=row["k"],
            outputs=row["n"],
            rows=row["m"],
            fp32_ms=row["fp32_ms"],
            int8_ms=row["kernel_ms"],
            int8_kernel=row["kernel"],
        )
        for row in found["rows"]
    ]


def uses_of(module: object) -> list[LinearUse]:
    """The linear layers of a torch module, plain or compressed, by shape.

    Layers whose weights alone are quantized count as fp32, which is what they never fall behind.
    """
    from torch import nn

    from headrace_workers.kernels.layers import CompressedLinear

    assert isinstance(module, nn.Module)
    found: Counter[tuple[int, int, Kernel]] = Counter()
    for part in module.modules():
        inputs, outputs = getattr(part, "in_features", None), getattr(part, "out_features", None)
        if isinstance(inputs, int) and isinstance(outputs, int):
            found[inputs, outputs, "int8" if isinstance(part, CompressedLinear) else "fp32"] += 1
    return [LinearUse(*shape, layers) for shape, layers in sorted(found.items())]


def _processor() -> str:
    """What the processor calls itself; the machine's architecture where it does not say."""
    try:
        lines = _PROCESSORS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return os.uname().machine
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine
