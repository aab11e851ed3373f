"""docs/configuration.md tells the truth: its tables are what the classes say, its examples are what the code takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from headrace.errors import ConfigError
from headrace_cluster.app import build
from headrace_cluster.config.file import read_yaml
from headrace_cluster.config.settings import load_config
from support.reference import PAGE, rewritten, undocumented

TEXT = PAGE.read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^```yaml (\w+)\n(.*?)^```$", TEXT, re.M | re.S))


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The annotated example, as a file."""
    file = tmp_path / "config.yaml"
    file.write_text(BLOCKS["example"], "utf-8")
    return file


def test_the_tables_are_those_of_the_code() -> None:
    """Every class has one, and it is current."""
    assert undocumented(TEXT) == set()
    assert rewritten(TEXT) == TEXT, "run: make docs"


def test_the_example_is_a_configuration(example: Path) -> None:
    """With the values that it shows."""
    config = load_config(example)
    assert set(config.models) == {"minilm", "scorer"}
    assert config.models["minilm"].batching.patience_s == (0, 0.5, 30)
    assert config.models["scorer"].engine.options == {"threshold": 0.7}
    assert config.redis.durability == "always"


def test_the_variables_do_what_is_said_of_them(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the table gives a value, over the example."""
    variables = re.findall(r"^\| `(HEADRACE_\w+)='?([^'`]+)'?` \|", TEXT, re.M)
    assert len(variables) == 4
    for name, value in variables:
        monkeypatch.setenv(name, value)
    config = load_config(example)
    assert config.router.replicas == 2
    assert config.models["minilm"].batching.max_jobs == 32
    assert [pool.replicas for pool in config.models["minilm"].pools] == [4]


def test_variables_that_are_no_keys_are_let_by(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the second table, and no others."""
    names = re.findall(r"^\| `(HEADRACE_(?:ISA|NATIVE))` \|", TEXT, re.M)
    for name in names:
        monkeypatch.setenv(name, "none")
    load_config(example)
    assert names == ["HEADRACE_ISA", "HEADRACE_NATIVE"]
    monkeypatch.setenv("HEADRACE_OTHER", "x")
    with pytest.raises(ConfigError):
        load_config(example)


def test_serve_takes_the_application(example: Path) -> None:
    """The map that Ray Serve reads, and the builder that it names."""
    content: dict[str, Any] = yaml.safe_load(BLOCKS["serve"])
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert set(application.args) == {"config"}
    for source in (str(example), read_yaml(example)):
        assert isinstance(build({"config": source}), Application)
