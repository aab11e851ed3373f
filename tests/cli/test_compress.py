"""`headrace compress` by a recipe: what it prints, what it leaves, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import application
from headrace.cli.output import Exit
from headrace_workers.artifacts.artifact import open_artifact
from support.command_line import Ran
from support.tiny_model import WORDS

Command = Callable[..., Ran]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"{one} {two} {three}" for one in WORDS for two in WORDS for three in WORDS[:2]))
    return file


# -- what it is for -----------------------------------------------------------------------------------------


def test_a_model_becomes_an_artifact(compress: Command, model: Path, texts: Path, tmp_path: Path) -> None:
    ran = compress(model, "--recipe", "int8", "-o", tmp_path / "out", "--data", texts)

    assert ran.status == Exit.DONE, ran.err
    assert open_artifact(tmp_path / "out").manifest.variants == ["int8"]
    assert "as it came" in ran.out
    assert "quantize: the worst layer is " in ran.out
    assert f"judged by: {texts}" in ran.out
    assert f"artifact: {tmp_path / 'out'}" in ran.out
    steps = [line for line in ran.err.splitlines() if line.startswith("…")]
    assert steps[0] == "… 1/1 quantize: starting"
    assert steps[-1] == "… 1/1 quantize: measuring"
    assert not (tmp_path / ".out.work").exists()


def test_programs_get_the_report(compress: Command, model: Path, texts: Path, tmp_path: Path) -> None:
    ran = compress(model, "-o", tmp_path / "out", "--data", texts, "--keep-work", "--json")

    assert ran.last["metrics"]["size_ratio"] < 0.7
    assert ran.last["stages"][0]["kind"] == "quantize"
    assert ran.last == json.loads((tmp_path / "out/reports/eval.json").read_bytes())
    assert (tmp_path / ".out.work/01-quantize").is_dir()


def test_other_values_in_a_recipe(compress: Command, model: Path, texts: Path, tmp_path: Path) -> None:
    """The table of embeddings is most of this model, so the recipe's gate has to give way with it."""
    other = {"stages.0.embeddings": "keep", "gates.max_size_ratio": "1", "seed": "3"}
    settings = [part for place, value in other.items() for part in ("--set", f"{place}={value}")]

    ran = compress(model, "-o", tmp_path / "out", "--data", texts, *settings, "--json")

    assert ran.last["recipe"]["seed"] == 3
    assert ran.last["recipe"]["stages"][0]["embeddings"] == "keep"
    assert 0.7 < ran.last["metrics"]["size_ratio"] < 1


def test_which_recipes_there_are(compress: Command) -> None:
    ran = compress("--list-recipes")

    assert ran.status == Exit.DONE
    assert "small: prune_structured → recover → quantize" in ran.out
    assert [recipe["name"] for recipe in compress("--list-recipes", "--json").last["recipes"]] == [
        "draft",
        "gpu",
        "int8",
        "small",
        "smallest",
    ]


def test_the_shell_completes_names_of_recipes() -> None:
    asked = {"_HEADRACE_COMPLETE": "complete_bash", "COMP_WORDS": "headrace compress --recipe sm", "COMP_CWORD": "3"}

    ran = CliRunner().invoke(application(), prog_name="headrace", env=asked)

    assert ran.stdout.split() == ["small", "smallest"]


# -- what goes wrong ----------------------------------------------------------------------------------------


def test_a_gate_that_is_not_met(compress: Command, model: Path, texts: Path, tmp_path: Path) -> None:
    ran = compress(model, "-o", tmp_path / "out", "--data", texts, "--set", "gates.max_size_ratio=0.01", "--json")

    assert ran.status == Exit.FAILED
    assert ran.last["error"]["code"] == "gate"
    assert "max_size_ratio: size_ratio is 0." in ran.last["error"]["message"]
    assert "headrace artifact show" in ran.last["error"]["hint"]
    assert open_artifact(tmp_path / ".out.work/rejected")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "{out}"], "usage", "a model and an output are needed"),
        (["{model}"], "usage", "a model and an output are needed"),
        (["{model}", "-o", "{out}", "--recipe", "tiny"], "recipe", "no ready recipe of that name"),
        (["{model}", "-o", "{out}", "--task", "translation"], "usage", "'translation' is none of embedding"),
        (["{model}", "-o", "{out}", "--set", "stages"], "recipe", "is no setting"),
        (["{model}", "-o", "{out}", "--set", "stages.1.seed=1"], "recipe", "at '1' there is 0 to 0"),
        (["{model}", "-o", "{out}", "--set", "seed.a=1"], "recipe", "there is nothing in it"),
        (["{model}", "-o", "{out}", "--set", "stages.0.bits=4"], "recipe", "stages.0.quantize.bits: Extra inputs"),
        (["{model}", "-o", "{out}", "--data", "{out}"], "compression_data", "cannot be read"),
        (["{model}", "-o", "{out}", "--recipe", "small"], "compression_data", "learns from data"),
        (["{out}", "-o", "{out}"], "model_load", "there is no folder"),
        (["{model}", "-o", "{model}"], "artifact", "exists"),
    ],
)
def test_wrong_usage(
    compress: Command, model: Path, tmp_path: Path, arguments: list[str], code: str, message: str
) -> None:
    places = {"model": model, "out": tmp_path / "out"}

    ran = compress(*(argument.format(**places) for argument in arguments), "--json")

    assert ran.status == Exit.USAGE
    assert (ran.last["error"]["code"], message in ran.last["error"]["message"]) == (code, True), ran.last
    assert not (tmp_path / "out").exists()
