"""torchao's schemes for GPUs: what can be tried where, and that nothing slower or worse is kept."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import ModelLoadError
from headrace_workers.kernels import torchao_cuda
from headrace_workers.kernels.torchao_cuda import CudaScheme, config_of, convert, fastest, refusal, schemes_for

installed = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
SCHEMES: tuple[CudaScheme, ...] = ("float8_dynamic", "int8_dynamic", "int8_weights", "int4_weights")


@pytest.fixture(autouse=True)
def _torchaos_own_advice() -> None:
    """It logs, on import, about kernels that this build of torch cannot load."""
    logging.getLogger("torchao").setLevel(logging.CRITICAL)


def model(width: int = 256) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 32), nn.Linear(32, 5)).eval()


@installed
@pytest.mark.parametrize(
    ("capability", "dtype", "schemes"),
    [
        ((7, 5), torch.float16, ()),
        ((8, 0), torch.float16, ("int8_dynamic", "int8_weights")),
        ((8, 0), torch.bfloat16, ("int8_dynamic", "int8_weights", "int4_weights")),
        ((9, 0), torch.bfloat16, SCHEMES),
    ],
)
def test_a_gpu_gets_what_it_has_instructions_for(
    capability: tuple[int, int], dtype: torch.dtype, schemes: tuple[str, ...]
) -> None:
    assert schemes_for(capability, dtype) == schemes


@installed
def test_a_refusal_says_what_is_missing() -> None:
    assert "needs compute capability (8, 9), this GPU has (8, 0)" in refusal((8, 0), torch.bfloat16, "float8_dynamic")
    assert "needs a model in bfloat16" in refusal((9, 0), torch.float16, "int4_weights")


def test_without_torchao_nothing_is_tried_and_the_reason_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)

    assert schemes_for((9, 0), torch.bfloat16) == ()
    assert "pip install" in refusal((9, 0), torch.bfloat16, "int8_dynamic")
    with pytest.raises(ModelLoadError, match=r"int8_dynamic needs torchao 0\.18"):
        config_of("int8_dynamic")


@installed
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_configuration(scheme: CudaScheme) -> None:
    assert "Config" in type(config_of(scheme, group=64)).__name__


@installed
@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_weights"])
@torch.inference_mode()
def test_a_converted_model_answers_like_the_model_whatever_the_batch(scheme: CudaScheme) -> None:
    """Its integer schemes run on a CPU as well, slowly. A row's neighbours, however large, change nothing of it."""
    plain, converted = model(), model()
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))

    names = convert(converted, scheme)

    assert names == ["0", "2"]  # the last has five outputs, which no tensor core takes
    assert (converted(x) - plain(x)).norm() / plain(x).norm() < 0.02
    torch.testing.assert_close(converted(torch.cat([x[:1], 100 * x[1:]]))[:1], converted(x[:1]), rtol=1e-4, atol=1e-5)


@installed
def test_a_model_without_a_fitting_layer_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="no linear layer"):
        convert(nn.Sequential(nn.Linear(5, 3)), "int8_dynamic")


@installed
@torch.inference_mode()
def test_what_is_slower_or_answers_otherwise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = model(), torch.randn(4, 256)
    seconds = iter([1.0, 2.0, 0.5, 1.0])
    monkeypatch.setattr(torchao_cuda, "_seconds", lambda _run: next(seconds))

    def bind(module: nn.Module) -> Callable[[], Tensor]:
        return lambda: module(x)

    best, trials = fastest(plain, ("int8_dynamic", "int8_weights"), bind, tolerance=0.05)
    assert [trial.scheme for trial in trials] == ["unquantized", "int8_dynamic", "int8_weights"]
    assert best is not plain
    assert isinstance(plain[0].weight, nn.Parameter)
    assert type(plain[0].weight.data) is Tensor

    same, trials = fastest(plain, ("int8_weights",), bind, tolerance=0.0)
    assert same is plain
    assert trials[1].problem == "its answers are too far off"


@installed
@gpu
@torch.inference_mode()
def test_on_a_gpu_every_scheme_it_has_answers_like_the_model() -> None:
    plain = model(1024).to("cuda", torch.bfloat16)
    x = torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16)
    expected = plain(x)

    schemes = schemes_for(torch.cuda.get_device_capability(), torch.bfloat16)
    assert schemes
    for scheme in schemes:
        converted = copy.deepcopy(plain)
        convert(converted, scheme)
        assert (converted(x) - expected).norm() / expected.norm() < 0.15, scheme
