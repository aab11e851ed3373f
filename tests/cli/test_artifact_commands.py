"""`headrace artifact`: what artifacts say of themselves, whether they are whole, and what sets two of them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.cli.output import Exit
from headrace_workers.compression import build_artifact
from support.command_line import Ran

Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def int8(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_artifact(model, tmp_path_factory.mktemp("artifacts") / "int8").path


@pytest.fixture(scope="module")
def less(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its feed-forward left alone."""
    folder = tmp_path_factory.mktemp("artifacts") / "less"
    return build_artifact(model, folder, left_alone=["*intermediate*", "*.output.dense"]).path


@pytest.fixture
def artifact(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `headrace artifact`."""

    def run(*arguments: str | Path) -> Ran:
        status = main(["artifact", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


# -- what it is for -----------------------------------------------------------------------------------------


def test_show(artifact: Command, int8: Path, model: Path) -> None:
    ran = artifact("show", int8)

    assert ran.status == Exit.DONE
    assert f"{int8}: embedding, made of {model} at 20" in ran.out
    assert "  quantize: int8, round to nearest" in ran.out
    assert "layers_quantized" in ran.out
    assert "; 1 int8_row, 6 int8_channel" in ran.out
    assert "encoder.layer.0.output.dense" not in ran.out
    assert "  encoder.layer.0.output.dense  int8_channel" in artifact("show", int8, "--layers").out


def test_show_for_programs(artifact: Command, int8: Path) -> None:
    shown = artifact("show", int8, "--json").last

    variant = shown["variants"][0]
    assert (shown["task"], variant["name"], variant["requires"]["device"]) == ("embedding", "int8", "cpu")
    assert variant["schemes"] == {"int8_row": 1, "int8_channel": 6}
    assert 0 < variant["bytes"] < shown["bytes"]
    assert len(shown["source_sha256"]) == 64


def test_verify(artifact: Command, int8: Path) -> None:
    ran = artifact("verify", int8, "--json")

    assert (ran.status, ran.last["whole"]) == (Exit.DONE, True)
    assert ran.last["bytes"] == sum(
        path.stat().st_size for path in int8.rglob("*") if path.name != "manifest.json" and path.is_file()
    )
    assert "is whole" in artifact("verify", int8).out


def test_diff(artifact: Command, int8: Path, less: Path) -> None:
    found = artifact("diff", int8, less, "--json").last

    assert found["schemes"] == {
        "encoder.layer.0.intermediate.dense": ["int8_channel", None],
        "encoder.layer.0.output.dense": ["int8_channel", None],
        "encoder.layer.0.attention.output.dense": ["int8_channel", None],
    }
    assert found["metrics"]["layers_quantized"] == [7, 4]
    assert found["weight_shapes"] == {}
    # What was rounded on one side only is apart by what rounding to 127 levels costs, and nothing else is.
    assert found["weight_distances"].keys() == {f"{name}.weight" for name in found["schemes"]}
    assert all(0.001 < distance < 0.02 for distance in found["weight_distances"].values())
    shown = artifact("diff", int8, less).out
    assert "weight distances" in shown
    assert "encoder.layer.0.intermediate.dense" in shown


def test_an_artifact_does_not_differ_from_itself(artifact: Command, int8: Path) -> None:
    assert artifact("diff", int8, int8).out == "no difference\n"


def test_export(artifact: Command, int8: Path, tmp_path: Path) -> None:
    ran = artifact("export", int8, "--format", "torch", "-o", tmp_path / "model.pt2", "--json")

    assert ran.status == Exit.DONE, ran.err
    assert ran.last["bytes"] == (tmp_path / "model.pt2").stat().st_size > 0


# -- what goes wrong ----------------------------------------------------------------------------------------


def test_a_byte_changed_on_the_way(artifact: Command, model: Path, tmp_path: Path) -> None:
    path = build_artifact(model, tmp_path / "changed").path
    blob = next(path.glob("blobs/*"))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)

    for command in (["verify", path], ["show", path], ["diff", path, path]):
        ran = artifact(*command, "--json")
        assert ran.status == Exit.USAGE
        assert ran.last["error"]["code"] == "artifact_tampered"
        assert blob.name in ran.last["error"]["message"]


def test_a_format_that_is_not_known(artifact: Command, int8: Path, tmp_path: Path) -> None:
    ran = artifact("export", int8, "--format", "tflite", "-o", tmp_path / "model")

    assert ran.status == Exit.FAILED
    assert "onnx, torch, executorch" in ran.err


def test_what_is_no_artifact(artifact: Command, model: Path, tmp_path: Path) -> None:
    assert "is not an artifact: it has no manifest.json" in artifact("show", model).err
    assert artifact("verify", tmp_path / "none").status == Exit.USAGE
