"""Engines from a configuration, and a user's own class as one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.errors import ModelLoadError
from headrace_workers import Prepared
from headrace_workers.engines import EngineConfig, EngineInfo, make_engine
from headrace_workers.engines.custom import load_engine
from headrace_workers.engines.encoder import EncoderEngine

SHOUTING = """
from headrace_workers import Prepared
from headrace_workers.engines import EngineInfo

class Shouting:
    def __init__(self, mark="!"):
        self.mark = mark
        self.info = EngineInfo(variant="loud", task="shouting", device="cpu", load_s=0.0)
    def prepare(self, requests):
        return [Prepared(1, text) for text, _ in requests]
    def run(self, items):
        return [item.data.upper() + self.mark for item in items]
    def example(self):
        return "hello", {}

class Mute:
    info = None
    def prepare(self, requests): ...

class Broken:
    def __init__(self):
        raise RuntimeError("no such device")
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shouting_engine.py").write_text(SHOUTING)
    (tmp_path / "failing_engine.py").write_text("import no_such_package_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shouting_engine", raising=False)
    return "shouting_engine"


def test_an_encoder_from_its_configuration(minilm: Path) -> None:
    config = EngineConfig(model=str(minilm), max_tokens=32, overlong="truncate", kernels="int8")

    engine = make_engine(config)

    assert isinstance(engine, EncoderEngine)
    assert engine.info.details["max_tokens"] == 32
    (item,) = engine.prepare([("water " * 60, {})])
    assert isinstance(item, Prepared)
    assert item.tokens == 32


def test_a_users_class_is_an_engine(users_module: str) -> None:
    engine = make_engine(EngineConfig(kind="custom", target=f"{users_module}:Shouting", options={"mark": "?"}))

    assert isinstance(engine.info, EngineInfo)
    (item,) = engine.prepare([("water", {})])
    assert isinstance(item, Prepared)
    assert engine.run([item]) == ["WATER?"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("Mute", "lacks run, example"),
        ("Broken", "RuntimeError: no such device"),
        ("Absent", "has no class Absent"),
    ],
)
def test_a_class_that_is_no_engine_is_told_what_it_lacks(users_module: str, target: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load_engine(f"{users_module}:{target}", {})


@pytest.mark.parametrize(
    "target", ["no_colon", "os:", ":path", "", "no_such_module_here:Engine", "failing_engine:Engine"]
)
def test_a_name_that_leads_nowhere_is_named(users_module: str, target: str) -> None:
    with pytest.raises(ModelLoadError):
        load_engine(target, {})


def test_wrong_options_are_named(users_module: str) -> None:
    with pytest.raises(ModelLoadError, match="unexpected keyword argument 'volume'"):
        load_engine(f"{users_module}:Shouting", {"volume": 11})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "encoder"}, "an engine of kind encoder needs model"),
        ({"kind": "custom"}, "an engine of kind custom needs target"),
        ({"kind": "echo", "model": "m"}, "an engine of kind echo has no model"),
        ({"kind": "custom", "target": "a:B", "precision": "int8"}, "an engine of kind custom has no precision"),
        ({"model": "m", "modle": "m"}, "modle"),
        ({"model": "m", "precision": "int4"}, "precision"),
        ({"model": "m", "max_tokens": 0}, "max_tokens"),
        ({"kind": "decoding", "model": "m"}, "kind"),
        ({"kind": "decoder"}, "an engine of kind decoder needs model"),
        ({"kind": "decoder", "model": "m", "task": "embedding"}, "an engine of kind decoder has no task"),
        ({"kind": "decoder", "model": "m", "slots": 0}, "slots"),
        ({"kind": "encoder", "model": "m", "slots": 4}, "an engine of kind encoder has no slots"),
        ({"kind": "encoder", "model": "m", "precision": "int4"}, "has no precision int4"),
    ],
)
def test_a_configuration_with_a_mistake_names_it(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EngineConfig(**settings)


def test_reading_a_configuration_loads_neither_torch_nor_transformers() -> None:
    """A router reads it too, and hosts no model."""
    code = (
        "import sys; from headrace_workers.engines.factory import EngineConfig; EngineConfig(kind='echo');"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
