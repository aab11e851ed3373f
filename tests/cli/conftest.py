"""Running the command line in this process, for the tests that do not have to kill it."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.cli import main
from support.command_line import Ran, Run, Zygote, kill_started
from support.tiny_model import write_tiny_model


@pytest.fixture
def headrace(
    redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Runs a command against the test's server, on another thread, so that the test's service goes on."""
    monkeypatch.setenv("HEADRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no-embedded-server"))

    async def run(*arguments: str | Path, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = await asyncio.to_thread(main, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where commands come from that are killed at a given step."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    kill_started()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder that is small enough to be compressed in seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def compress(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `headrace compress`, in this process alone."""

    def run(*arguments: str | Path) -> Ran:
        status = main(["compress", "--threads", "1", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
