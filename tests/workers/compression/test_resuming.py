"""Resuming: what was finished is not done again, whatever ended the run, and nothing is used that no longer fits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace_workers.artifacts.artifact import open_artifact
from headrace_workers.compression.data import Examples, split
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import parse_recipe
from headrace_workers.compression.report import CompressionReport
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, load_subject
from headrace_workers.models.source import find_source
from support.counting_stages import QUICK, TWO, Stages

Run = Callable[..., CompressionReport]
TinyModel = Callable[..., Path]

# -- resuming -----------------------------------------------------------------------------------------------


def test_after_ctrl_c_the_first_stage_is_not_run_again(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    stages.fails["quantize"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(TWO)
    assert not (tmp_path / "out").exists()
    assert stages.ran == ["prune", "quantize"]

    report = run_pipeline(TWO)

    assert stages.ran == ["prune", "quantize", "quantize"]
    assert report.stages[0].notes == ["prune set small weights to zero"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_ends_with_the_same_bits(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    run_pipeline(TWO)
    (tmp_path / "out").rename(tmp_path / "straight")
    stages.fails["quantize"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(TWO)
    run_pipeline(TWO)

    straight, resumed = (open_artifact(tmp_path / name).manifest.files for name in ("straight", "out"))
    assert [name for name in straight if name.startswith("blobs/")] == [
        name for name in resumed if name.startswith("blobs/")
    ]


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        ({"stages": [TWO["stages"][0], {"kind": "quantize", "embeddings": "keep"}]}, ["quantize"]),
        ({"stages": [{**TWO["stages"][0], "threshold": 0.1}, {"kind": "quantize"}]}, ["prune", "quantize"]),
        ({"stages": TWO["stages"], "seed": 5}, ["prune", "quantize"]),
        ({"stages": TWO["stages"], "gates": {"max_metric_drop": 1}}, []),
    ],
    ids=["a later stage", "the first stage", "the seed", "the gates"],
)
def test_a_changed_recipe_reuses_what_still_fits(
    run_pipeline: Run, stages: Stages, tmp_path: Path, change: dict[str, Any], ran: list[str]
) -> None:
    run_pipeline(TWO, keep_work=True)
    (tmp_path / "out").rename(tmp_path / "before")
    stages.ran.clear()

    run_pipeline(change)

    assert stages.ran == ran


def test_other_data_and_another_model_reuse_nothing(
    run_pipeline: Run, stages: Stages, tmp_path: Path, tiny_texts: list[str], tiny_model: TinyModel
) -> None:
    run_pipeline(TWO, keep_work=True, work=tmp_path / "work")
    other = tiny_model("Bert", num_hidden_layers=1, intermediate_size=64)
    stages.ran.clear()

    compress_subject(
        load_subject(find_source(other)),
        split(Examples([f"{text} {number}" for text in tiny_texts for number in range(20)])),
        parse_recipe(TWO),
        tmp_path / "other",
        model=other,
        work=tmp_path / "work",
        measures=QUICK,
        stages=stages.functions(),
    )

    assert stages.ran == ["prune", "quantize"]


def test_a_damaged_checkpoint_is_made_again(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    run_pipeline(TWO, keep_work=True)
    (tmp_path / "out").rename(tmp_path / "before")
    blob = next((tmp_path / ".out.work/01-prune/blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    stages.ran.clear()

    run_pipeline(TWO)

    assert stages.ran == ["prune"]


def test_after_kill_9_it_goes_on_where_it_was(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    """Killed in the middle of the second stage, with something half-written in either place."""

    def killed(subject: Subject, stage: Any, context: StageContext) -> Subject:
        (tmp_path / ".out.work/.02-quantize.0123abcd.tmp").mkdir()
        (tmp_path / ".out.0123abcd.tmp").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    child = os.fork()
    if child == 0:
        run_pipeline(TWO, stages=stages.functions() | {"quantize": killed})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "out").exists()

    report = run_pipeline(TWO)

    assert stages.ran == ["quantize"]
    assert report.stages[0].notes == ["prune set small weights to zero"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
