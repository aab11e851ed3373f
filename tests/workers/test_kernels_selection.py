"""Choosing kernels: never slower than fp32, never a kernel that errs, and never two numerics in one layer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace_workers.kernels import library, selection
from headrace_workers.kernels.layers import CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.linear import FP32, Fp32Kernel, LinearKernel, NativeKernel, TorchInt8Kernel
from headrace_workers.kernels.selection import BUCKETS, Choice, KernelTable, bucket_of, sound_int8_kernels
from headrace_workers.kernels.weights import Activation, AffineWeight, Int8Weight, Shape


def layer(inputs: int = 64, outputs: int = 96, activation: Activation = Activation.IDENTITY) -> Int8Weight:
    random = torch.Generator().manual_seed(5)
    values = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    return Int8Weight(values, torch.rand(outputs, generator=random) / 127, None, activation=activation)


def compute(seconds: float) -> None:
    """Keep the core busy; kernels are measured in the time that they compute."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


class Delayed:
    """A kernel that takes its time: `delay_s(rows)` more than torch's."""

    def __init__(self, name: str, delay_s: Callable[[int], float], numerics: str = "int8") -> None:
        self.name = name
        self._delay_s = delay_s
        self._numerics = numerics

    def numerics(self, _shape: Shape) -> str:
        return self._numerics

    def refusal(self, _shape: Shape) -> str:
        return ""

    def prepare(self, weight: Int8Weight) -> Callable[[Tensor], Tensor]:
        run = TorchInt8Kernel().prepare(weight)

        def delayed(x: Tensor) -> Tensor:
            y = run(x)
            compute(self._delay_s(x.shape[0]))
            return y

        return delayed


@pytest.fixture
def slow_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp32 kernel of three milliseconds, so that a test can say what is faster and what is slower."""

    class SlowFp32(Fp32Kernel):
        def prepare(self, weight: Int8Weight | AffineWeight) -> Callable[[Tensor], Tensor]:
            run = super().prepare(weight)

            def slow(x: Tensor) -> Tensor:
                compute(0.003)
                return run(x)

            return slow

    monkeypatch.setattr(selection, "Fp32Kernel", SlowFp32)


@pytest.mark.parametrize(
    ("rows", "bucket"), [(0, 1), (1, 1), (2, 8), (8, 8), (9, 32), (128, 128), (129, 512), (9999, 512)]
)
def test_a_batch_counts_as_the_smallest_bucket_that_holds_it(rows: int, bucket: int) -> None:
    assert BUCKETS[bucket_of(rows)] == bucket


def test_each_bucket_gets_its_fastest_kernel(slow_fp32: None) -> None:
    short = Delayed("good when short", lambda rows: 0.0 if rows <= 8 else 0.002)
    long = Delayed("good when long", lambda rows: 0.002 if rows <= 8 else 0.0)

    choice = KernelTable(kernels=[short, long]).choose(layer())

    assert [kernel.name for kernel in choice.kernels] == ["good when short"] * 2 + ["good when long"] * 3
    assert min(choice.speedup) > 1


def test_a_layer_that_is_slower_in_one_bucket_stays_in_fp32_in_all(
    slow_fp32: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Taking int8 only where it is faster would make answers depend on the length of the batch."""
    mostly_fast = Delayed("slow at 32 rows", lambda rows: 0.01 if rows == 32 else 0.0)

    choice = KernelTable(kernels=[mostly_fast]).choose(layer())

    assert {kernel.name for kernel in choice.kernels} == {FP32}
    assert "stays in fp32" in caplog.text


def test_kernels_of_other_numerics_are_no_candidates(slow_fp32: None) -> None:
    """However fast they are."""
    ours = Delayed("ours", lambda _rows: 0.001)
    stranger = Delayed("faster, but other bits", lambda _rows: 0.0, numerics="int8-other")

    choice = KernelTable(kernels=[ours, stranger]).choose(layer())

    assert {kernel.name for kernel in choice.kernels} == {"ours"}


@pytest.mark.parametrize("activation", list(Activation))
def test_all_kernels_of_a_choice_share_their_numerics(activation: Activation, isa: Isa) -> None:
    weight = layer(activation=activation)
    for policy in ("measured", "int8", "fp32"):
        choice = KernelTable(policy).choose(weight)
        assert {kernel.numerics(weight.shape) for kernel in choice.kernels} == {choice.numerics}


def test_a_choice_that_mixes_numerics_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = Choice((*[TorchInt8Kernel()] * 4, Fp32Kernel()), "int8")
    table = KernelTable(kernels=[TorchInt8Kernel()])
    monkeypatch.setattr(table, "_decide", lambda _weight: mixed)

    with pytest.raises(AssertionError, match="fp32 does not give int8"):
        table.choose(layer())


def test_a_prepared_layer_gives_a_row_the_same_bits_in_every_bucket(isa: Isa) -> None:
    """The invariant that all of this is for."""
    compressed = CompressedLinear(layer(activation=Activation.GELU))
    compressed.prepare(KernelTable("int8"))
    compressed.release()
    x = torch.randn(600, 64, generator=torch.Generator().manual_seed(1))
    everything = compressed(x)

    for rows in (1, 2, 8, 9, 32, 100, 129, 600):
        assert torch.equal(compressed(x[:rows]), everything[:rows])


def test_a_kernel_that_errs_is_dropped_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OffByOne(TorchInt8Kernel):
        name = "off_by_one"

        def prepare(self, weight: Int8Weight) -> Callable[[Tensor], Tensor]:
            run = super().prepare(weight)
            return lambda x: run(x) + weight.scale * 1e-6

    monkeypatch.setattr(selection, "int8_kernels", lambda: (OffByOne(), TorchInt8Kernel()))

    assert [kernel.name for kernel in sound_int8_kernels()] == ["torch_int8"]
    assert "off_by_one is not used" in caplog.text


def test_shapes_are_measured_once() -> None:
    table = KernelTable()
    choice = table.choose(layer())

    assert table.choose(layer()) is choice
    assert list(table.choices) == [Shape(64, 96, Activation.IDENTITY)]
    assert table.choose(layer(outputs=32)) is not choice


def test_measuring_a_models_shapes_takes_less_than_a_second_or_two() -> None:
    started_s = time.perf_counter()
    table = KernelTable()
    for inputs, outputs in ((384, 384), (384, 1152), (384, 1536), (1536, 384)):
        table.choose(layer(inputs, outputs))

    assert time.perf_counter() - started_s < 5  # 0.5 s on a quiet machine


def test_without_the_native_kernels_int8_runs_on_torch_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADRACE_ISA", "none")

    assert support().isas == ()
    assert support().reason == "HEADRACE_ISA=none"
    assert [kernel.name for kernel in sound_int8_kernels()] == ["torch_int8"]


@pytest.fixture
def library_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Have the native library looked for elsewhere."""

    def forget() -> None:
        library._found.cache_clear()
        library._support.cache_clear()

    def move(path: Path) -> None:
        monkeypatch.setattr(library, "_PATH", path)
        forget()

    yield move
    monkeypatch.undo()
    forget()


def test_a_missing_library_is_a_reason_and_no_error(library_at: Callable[[Path], None], tmp_path: Path) -> None:
    library_at(tmp_path / "headrace_kernels.so")

    assert support().best is Isa.NONE
    assert "was not compiled" in support().reason
    with pytest.raises(RuntimeError, match="was not compiled"):
        library.native_library()


def test_a_file_that_is_no_library_is_a_reason_too(library_at: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "headrace_kernels.so").write_bytes(b"not an ELF file")
    library_at(tmp_path / "headrace_kernels.so")

    assert "cannot be loaded" in support().reason


def test_an_unknown_instruction_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ISA", "sse9")
    with pytest.raises(ValueError, match="HEADRACE_ISA is 'sse9'; it may be one of none, avx512_vnni, amx"):
        support()


def test_the_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    library._support.cache_clear()
    monkeypatch.setenv("HEADRACE_ISA", "none")
    with caplog.at_level(logging.INFO):
        support()
        support()

    assert [record.getMessage() for record in caplog.records] == [
        "int8 runs on torch's kernels, not on ours: HEADRACE_ISA=none"
    ]


def test_too_many_inputs_are_left_to_fp32() -> None:
    """Beyond 65,000 of them an int32 sum could overflow."""
    able: list[LinearKernel[Int8Weight]] = [*(NativeKernel(isa) for isa in support().isas), TorchInt8Kernel()]
    for kernel in able:
        assert "65,000" in kernel.refusal(Shape(70_000, 16, Activation.IDENTITY))
    wide = Int8Weight(torch.ones(2, 70_000, dtype=torch.int8), torch.ones(2), None)
    assert KernelTable("int8").choose(wide).numerics == FP32


def test_any_leading_dimensions_are_kept() -> None:
    compressed = CompressedLinear(layer())
    compressed.prepare(KernelTable("int8"))
    x = torch.randn(2, 3, 64)

    assert compressed(x).shape == (2, 3, 96)
    assert torch.equal(compressed(x), compressed(x.reshape(6, 64)).view(2, 3, 96))
    assert torch.equal(compressed(x.transpose(0, 1)), compressed(x).transpose(0, 1))
    columns = torch.randn(64, 5)
    assert torch.equal(compressed(columns.T), compressed(columns.T.contiguous()))


def test_an_embedding_is_dequantized_row_by_row() -> None:
    values, scale = torch.tensor([[1, -2], [127, 0], [5, 6]], dtype=torch.int8), torch.tensor([0.5, 2.0, 1.0])
    table = QuantizedEmbedding(values, scale)

    assert table(torch.tensor([[1, 0]])).tolist() == [[[254.0, 0.0], [0.5, -1.0]]]
    assert table(torch.empty(1, 0, dtype=torch.long)).shape == (1, 0, 2)
