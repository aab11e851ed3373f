"""Where services of their own run, each with a Ray of its own: one after the other."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.serving import Place


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Where `headrace serve` runs as a process. Its path is short, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    (folder / "tmp").mkdir()
    monkeypatch.delenv("HEADRACE_REDIS_URL", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    place = Place(folder, os.environ | environment)
    yield place
    place.clean_up()
    shutil.rmtree(folder, ignore_errors=True)
