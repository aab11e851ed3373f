"""`headrace compress --target`: a search, what it leaves, how it ends; and its answer for another node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli.output import Exit
from headrace_workers.artifacts.artifact import open_artifact
from support.command_line import Ran

Command = Callable[..., Ran]
BUDGET_S = "600"


@pytest.fixture
def search(compress: Command, model: Path) -> Command:
    """Searches for a recipe for the model, without a service."""

    def run(target: str, folder: Path, *more: str) -> Ran:
        return compress(model, "--target", target, "-o", folder, "--in-process", "--budget-s", BUDGET_S, *more)

    return run


def test_a_search_and_what_it_leaves(search: Command, compress: Command, tmp_path: Path) -> None:
    """Without data candidates are only quantized. Then the same front is asked for another target, and here again."""
    folder = tmp_path / "search"
    ran = search("size<=90%", folder)
    assert ran.status == Exit.DONE, ran.err
    assert "front for size<=90%" in ran.out
    assert "no --data: candidates are quantized only" in ran.err
    assert "… 0% int8" in ran.err
    assert f"report: {folder / 'report.html'}" in ran.out
    assert {"front.json", "latency", "report.html", "search.jsonl", "trials"} <= {
        file.name for file in folder.iterdir()
    }

    again = search("size<=0.01%", folder, "--json")
    told, error = map(json.loads, again.out.splitlines())
    assert again.status == Exit.FAILED
    assert (told["met"], told["ended"]) == (False, "complete")
    assert open_artifact(told["artifact"]).manifest.task == "embedding"
    assert error["error"]["code"] == "gate"
    assert "away from size<=0.01%" in error["error"]["message"]

    decided = compress("--redecide", folder, "--target", "size<=90%", "--json")
    assert decided.status == Exit.DONE, decided.err
    decision = json.loads(decided.out)
    assert (folder / decision["artifact"]).is_dir()
    assert decision["speeds"].keys() == {
        entry["key"] for entry in json.loads((folder / "front.json").read_text())["entries"]
    }
    assert [file.stem for file in (folder / "decisions").iterdir()]

    missed = compress("--redecide", folder, "--target", "size<=0.01%")
    assert missed.status == Exit.FAILED
    assert "run 'int" in missed.out
    assert "is not met on this node: size is" in missed.err


def test_a_budget_that_is_too_small(compress: Command, model: Path, tmp_path: Path) -> None:
    """It ends with a status of its own, and a word on how to go on."""
    ran = compress(model, "--target", "size<=1%", "-o", tmp_path / "out", "--in-process", "--budget-s", "1")
    assert ran.status == Exit.TIMED_OUT
    assert "the budget ended first" in ran.err
    assert "run the same again to go on" in ran.err
    assert (tmp_path / "out" / "front.json").is_file()


def test_a_target_that_is_not_understood(search: Command, tmp_path: Path) -> None:
    ran = search("speed>=4", tmp_path / "out")
    assert ran.status in (Exit.FAILED, Exit.USAGE)
    assert "target, character 1: 4 without a unit could mean anything here" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_no_search(compress: Command, tmp_path: Path) -> None:
    ran = compress("--redecide", tmp_path)
    assert ran.status != Exit.DONE
    assert f"{tmp_path} holds no search" in ran.err
