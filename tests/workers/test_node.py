"""Setting up a process, and what is known of its processor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from headrace_workers import node
from headrace_workers.kernels.benchmark import bench_kernels, shapes_of
from headrace_workers.kernels.library import support
from headrace_workers.openmp import SPINS

FRESH = """
import ctypes, resource, torch
from headrace_workers import node
node.prepare_process(2)
node.prepare_process(1)
assert (torch.get_num_threads(), torch.get_num_interop_threads()) == (1, 1)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
def come_and_go(bytes):
    memory = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(bytes)))
    libc.memset(memory, 1, ctypes.c_size_t(bytes))
    libc.free(memory)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5): come_and_go(400 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


def test_a_prepared_process_keeps_the_memory_it_frees() -> None:
    """400 MB are 102,400 page faults at their first use, and none after it."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    first, later = map(int, done.stdout.split())
    assert first > 100_000
    assert later < 1000


def test_preparing_again_is_harmless_and_sets_the_threads() -> None:
    node.prepare_process(2)
    assert torch.get_num_threads() == 2
    node.prepare_process(1)
    assert torch.get_num_threads() == 1
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_no_threads_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least one thread, not 0"):
        node.prepare_process(0)


def test_the_processor_is_known() -> None:
    found = node.capabilities()

    assert found.architecture
    assert found.cores >= 1
    assert found.bf16 == bool(found.flags & {"avx512_bf16", "amx_bf16"})
    if support().isas:
        assert "avx512_vnni" in found.flags


def test_the_benchmark_compares_pairs_and_sums_up() -> None:
    report = bench_kernels([(64, 96)], rows=(1, 256))

    assert [(row["k"], row["n"], row["m"]) for row in report["rows"]] == [(64, 96, 1), (64, 96, 256)]
    assert all(row["fp32_ms"] > 0 and row["kernel_ms"] > 0 for row in report["rows"])
    used = [row["speedup"] for row in report["rows"] if row["kernel"] != "fp32"]
    assert report["worst_speedup"] == min(used, default=None)
    assert report["isa"] == support().best
    assert shapes_of(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(3, 5))) == [(3, 5)]


@pytest.mark.skipif(not support().isas, reason=support().reason)
def test_int8_is_clearly_faster_than_fp32_on_large_batches() -> None:
    """The promise is fourfold (docs/benchmarks.md); a machine that is busy with other things still shows twice."""
    report = bench_kernels([(384, 1536)], rows=(256,))

    assert report["worst_speedup_m256"] > 2


# -- threads that wait ----------------------------------------------------------------------------------------------


def _openmp_says(**environment: str) -> str:
    """What libgomp has been told, in a process of its own."""
    code = "import headrace_workers, torch; torch.set_num_threads(2)"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stderr


def test_threads_that_wait_for_each_other_give_way() -> None:
    """A package that came too late would be read by nobody."""
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in _openmp_says()


def test_who_has_said_how_they_wait_is_heard() -> None:
    assert "GOMP_SPINCOUNT = '7'" in _openmp_says(GOMP_SPINCOUNT="7")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" not in _openmp_says(OMP_WAIT_POLICY="active")
