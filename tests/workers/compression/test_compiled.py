"""Compiled modules: only where the operator asks, only with the module's answers, only when faster."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.kernels import compiled
from headrace_workers.kernels.compiled import CompiledChoice, choose_compiled, compile_module, compiled_path, node_key

EXAMPLES = [(torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)),) for rows in (1, 3, 40)]


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, compiled."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    return compile_module(model(), (torch.randn(2, 16),), compiled_path(tmp_path_factory.mktemp("any") / "artifact"))


def always(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Have the compiled form measured as so many times as fast."""

    def measured(_module: object, _compiled: object, _example: Sequence[Tensor]) -> float:
        return speedup

    monkeypatch.setattr(compiled, "_speedup", measured)


@pytest.mark.slow
def test_a_compiled_module_answers_like_the_module_at_any_batch_length(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch, 1.5)

    choice = choose_compiled(model(), package, EXAMPLES, allowed=True)

    assert choice.compiled
    assert choice.describe() == {"compiled": True, "speedup": 1.5}
    for (x,) in EXAMPLES:
        torch.testing.assert_close(choice.run(x), model()(x))


@pytest.mark.slow
def test_a_compiled_module_that_is_not_faster_is_not_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, 0.97)
    own = model()

    choice = choose_compiled(own, package, EXAMPLES, allowed=True)

    assert choice == CompiledChoice(own, False, "it is not faster", 0.97)


@pytest.mark.slow
def test_a_package_of_another_model_is_not_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, 2.0)

    choice = choose_compiled(model(seed=1), package, EXAMPLES, allowed=True)

    assert not choice.compiled
    assert "another model" in choice.reason


@pytest.mark.slow
def test_it_is_measured_for_real(package: Path) -> None:
    """Whatever comes out, it comes with a figure."""
    choice = choose_compiled(model(), package, EXAMPLES, allowed=True)

    assert choice.speedup > 0
    assert choice.compiled == (choice.speedup > 1)


def test_nothing_is_opened_unless_the_operator_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package is executable: one that somebody put beside an artifact must lie there untouched."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"whatever")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_: pytest.fail("it was opened"))

    choice = choose_compiled(model(), path, EXAMPLES, allowed=False)

    assert not choice.compiled
    assert "compiled: true" in choice.reason


@pytest.mark.parametrize(("content", "reason"), [(None, "there is no"), (b"not a package", "cannot be used")])
def test_without_a_usable_package_the_module_serves(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path, own = tmp_path / "model.pt2", model()
    if content is not None:
        path.write_bytes(content)

    choice = choose_compiled(own, path, EXAMPLES, allowed=True)

    assert choice.run is own
    assert reason in choice.reason


def test_packages_are_kept_apart_by_processor_and_torch_beside_the_artifact() -> None:
    path = compiled_path(Path("/models/tone"))

    assert path == Path("/models/tone.compiled") / node_key() / "model.pt2"
    assert torch.__version__ in node_key()


def test_without_a_compiler_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(StageError, match=r"needs a C\+\+ compiler"):
        compile_module(model(), EXAMPLES[1], tmp_path / "model.pt2")


def test_what_cannot_be_traced_leaves_nothing_behind(tmp_path: Path) -> None:
    class GoesByTheData(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(StageError, match="GoesByTheData cannot be compiled"):
        compile_module(GoesByTheData(), EXAMPLES[1], tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
