"""`headrace serve NAME=MODEL`: which engine a model gets that is only named."""

from __future__ import annotations

import json
from pathlib import Path

from headrace_cluster.bench.models import packaged_encoder, packaged_language_model
from headrace_cluster.cli.serve import _inline


def engine_of(model: str | Path, task: str | None = None) -> dict[str, str]:
    engine: dict[str, str] = _inline([f"m={model}"], task, 1)["m"]["engine"]
    return engine


def test_a_language_model_gets_a_decoder() -> None:
    assert engine_of(packaged_language_model())["kind"] == "decoder"


def test_any_other_model_gets_an_encoder() -> None:
    assert engine_of(packaged_encoder())["kind"] == "encoder"


def test_a_folder_says_by_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert engine_of(tmp_path) == {"kind": "decoder", "model": str(tmp_path)}


def test_a_task_that_is_named_decides(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert engine_of(tmp_path, "embedding") == {"kind": "encoder", "model": str(tmp_path), "task": "embedding"}
    assert engine_of(tmp_path, "causal_lm")["kind"] == "decoder"


def test_what_is_no_model_is_left_to_the_replica_to_refuse(tmp_path: Path) -> None:
    assert engine_of(tmp_path / "nothing")["kind"] == "encoder"
