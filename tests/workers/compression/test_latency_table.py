"""How long linear layers take on this node, and what that says of models that nobody has built yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from headrace.errors import StageError
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.compression.search.latency_table import (
    LatencyTable,
    LinearUse,
    Node,
    Timing,
    load_table,
    measure_shapes,
    probe_node,
    uses_of,
)
from headrace_workers.kernels.selection import BUCKETS

NODE = Node(
    processor="a processor",
    architecture="x86_64",
    flags=["avx2"],
    isa="none",
    cores=2,
    threads=1,
    torch="2.13.0",
    headrace="0.1.0",
)
SQUARE, WIDE = (64, 64), (64, 256)


def timing(shape: tuple[int, int], fp32_ms: float, int8_ms: float, rows: int = 512) -> Timing:
    return Timing(
        inputs=shape[0], outputs=shape[1], rows=rows, fp32_ms=fp32_ms, int8_ms=int8_ms, int8_kernel="native_avx512_vnni"
    )


TABLE = LatencyTable(node=NODE, timings=[timing(SQUARE, 2.0, 0.5), timing(WIDE, 8.0, 2.0)])
ORIGINAL = [LinearUse(*SQUARE, "fp32", 4), LinearUse(*WIDE, "fp32", 2)]


def test_a_model_takes_what_its_layers_take() -> None:
    assert TABLE.total_ms(ORIGINAL) == 4 * 2.0 + 2 * 8.0
    assert TABLE.total_ms([LinearUse(*SQUARE, "int8", 4)]) == 4 * 0.5


def test_a_speedup_is_a_ratio_of_sums() -> None:
    halved = [LinearUse(*SQUARE, "int8", 2), LinearUse(*WIDE, "int8", 1)]
    assert TABLE.speedup(halved, ORIGINAL) == pytest.approx(8.0)


def test_one_measurement_tells_what_is_not_in_the_table() -> None:
    """int8 should be 4 times as fast and is 2.5 times: 12 ms of attention and the like on both sides."""
    int8 = [LinearUse(use.inputs, use.outputs, "int8", use.layers) for use in ORIGINAL]
    assert TABLE.speedup(int8, ORIGINAL) == pytest.approx(4.0)
    rest_ms = TABLE.rest_ms(int8, ORIGINAL, 2.5)
    assert TABLE.speedup(int8, ORIGINAL, rest_ms=rest_ms) == pytest.approx(2.5)
    assert rest_ms == pytest.approx(6.0)


@pytest.mark.parametrize("measured", [0.5, 1.0, 100.0])
def test_a_measurement_that_tells_nothing(measured: float) -> None:
    int8 = [LinearUse(*SQUARE, "int8", 4)]
    assert TABLE.rest_ms(int8, ORIGINAL, measured) == 0


def test_what_was_not_measured_is_not_guessed() -> None:
    with pytest.raises(StageError, match="no timing of 3x5 at 512 rows"):
        TABLE.total_ms([LinearUse(3, 5, "fp32")])


def test_only_new_shapes_are_measured() -> None:
    asked: list[tuple[int, int]] = []

    def measure(shapes: object, threads: int) -> list[Timing]:
        assert threads == NODE.threads
        asked.extend(shapes)  # type: ignore[arg-type]
        return [timing(shape, 1.0, 1.0) for shape in asked]

    more = [LinearUse(8, 16, "int8"), LinearUse(8, 16, "fp32")]
    longer = TABLE.extended([*ORIGINAL, *more], measure)
    assert asked == [(8, 16)]
    assert longer.total_ms(more) == 2.0
    assert TABLE.extended(ORIGINAL, measure) is TABLE


def test_a_table_is_kept_by_the_nodes_fingerprint(tmp_path: Path) -> None:
    """Another processor, another number of threads: another table."""
    TABLE.write(tmp_path)
    assert load_table(tmp_path, NODE) == TABLE
    other = NODE.model_copy(update={"threads": 2})
    assert other.fingerprint != NODE.fingerprint
    assert load_table(tmp_path, other).timings == []


def test_a_broken_table_is_measured_again(tmp_path: Path) -> None:
    TABLE.write(tmp_path).write_text('{"timings": ')
    assert load_table(tmp_path, NODE) == LatencyTable(node=NODE)


def test_this_node_is_measured_for_real() -> None:
    node = probe_node(1)
    table = LatencyTable(node=node).extended([LinearUse(32, 48, "int8")], measure_shapes)
    assert [one.rows for one in table.timings] == list(BUCKETS)
    assert all(one.fp32_ms > 0 and one.int8_ms > 0 and one.int8_kernel for one in table.timings)
    assert probe_node(1).fingerprint == node.fingerprint != probe_node(2).fingerprint


def test_a_models_layers_are_counted_as_they_are_computed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16))
    assert uses_of(model) == [LinearUse(8, 16, "fp32"), LinearUse(16, 16, "fp32", 2)]
    quantize_model(model, left_alone=["0"])
    assert uses_of(model) == [LinearUse(8, 16, "fp32"), LinearUse(16, 16, "int8", 2)]
