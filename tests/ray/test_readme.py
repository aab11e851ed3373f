"""README.md as a newcomer follows it: every command of it is run, in its order, and the example in Python too."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest
import typer

from headrace.cli.app import application
from headrace.cli.output import Exit
from headrace_cluster.bench.models import packaged_encoder
from support.command_line import HEADRACE
from support.processes import family
from support.serving import STOP_S, Place, next_line, nothing_stays

pytestmark = pytest.mark.ray

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "README.md").read_text("utf-8")
BLOCKS: Final[list[tuple[str, str]]] = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
COMMANDS: Final = [
    shlex.split(line, comments=True) for kind, block in BLOCKS if kind == "console" for line in block.splitlines()
]
HUB_ID: Final = "sentence-transformers/all-MiniLM-L6-v2"


def commands_of(program: str) -> list[list[str]]:
    return [command for command in COMMANDS if command[0] == program]


def test_every_block_is_of_a_kind_that_is_tried_here() -> None:
    """Drawings have no kind."""
    assert {kind for kind, _ in BLOCKS} == {"", "console", "python"}
    assert {command[0] for command in COMMANDS} == {"make", "pip", "headrace"}


def test_targets_of_make() -> None:
    """The Makefile has them; that they work is what its own users see, this test run among them."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {command[1] for command in commands_of("make")} <= targets


def test_extras_that_are_installed() -> None:
    """The package has them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"headrace\[([a-z,]+)\]", TEXT)
    assert named
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


def test_commands_that_are_only_named_exist() -> None:
    """In running text: `headrace bench transport`."""
    group = typer.main.get_command(application())
    context = typer.Context(group)
    for line in re.findall(r"`headrace ([a-z][^`]*)`", TEXT):
        command = group.get_command(context, line.split()[0])  # type: ignore[attr-defined]
        assert command is not None, line
        options = {name for option in command.params for name in option.opts}
        assert {word for word in line.split() if word.startswith("--")} <= options, line


def test_the_first_job_in_a_minute(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One terminal serves, others submit; Ctrl-C reaches the whole process group, and then nothing is left."""
    monkeypatch.chdir(place.folder)
    texts = ["water flows downhill", "the mill wheel turns", "bread is baked"]
    Path("texts.txt").write_text("\n".join(texts))
    Path("texts.jsonl").write_text("".join(json.dumps({"custom_id": t[:5], "input": t}) + "\n" for t in texts))
    (serve, *others) = commands_of("headrace")
    assert serve[1] == "serve"
    process = place.start(*(word.replace(HUB_ID, str(packaged_encoder())) for word in serve[2:]))
    told = [next_line(process) for _ in range(3)]
    assert told[:2] == [
        f"serving minilm at unix://{place.data}/redis.sock\n",
        'try:  headrace submit minilm "water flows downhill"\n',
    ]
    processes = family(process.pid)

    for command in others:
        run(place, HEADRACE, *command[1:])
    vectors = [json.loads(line) for line in Path("vectors.jsonl").read_text("utf-8").splitlines()]
    assert {line["custom_id"]: line["output"]["shape"] for line in vectors} == {t[:5]: [384] for t in texts}
    for code in (block for kind, block in BLOCKS if kind == "python"):
        said = run(place, sys.executable, "-c", code)
        assert said.count("True") == len(texts)

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=STOP_S)
    assert process.returncode == Exit.DONE
    assert [line for line in err.splitlines() if not line.startswith("warning: ")] == [
        "… starting: server, Ray, routers and replicas",
        "… stopping: what is in hand is finished first",
        "stopped",
    ]
    nothing_stays(place, processes)


def run(place: Place, *command: str | Path) -> str:
    """What a command says that ends well."""
    done = subprocess.run(command, capture_output=True, text=True, env=place.environment, timeout=60, check=False)
    assert done.returncode == Exit.DONE, (command, done.stderr)
    return done.stdout
