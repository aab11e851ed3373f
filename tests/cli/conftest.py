"""Running the command line in this process, for the tests that do not have to kill it."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from headrace.cli import main
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.command_line import CountingEngine, Ran, Run, Zygote, kill_started
from support.service import PlainService
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


@pytest.fixture
def engine() -> CountingEngine:
    """Says what it is told, and counts how often."""
    return CountingEngine()


@pytest.fixture
async def service(redis_url: str, engine: CountingEngine) -> AsyncIterator[PlainService]:
    """A service of one model, `echo`, beside the command."""
    async with PlainService(redis_url, "echo", engine, policy=RoutingPolicy(block_ms=10)) as service:
        yield service


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for this test alone, whose settings and users it may change."""
    with EmbeddedServer(fsync="everysec", die_with_parent=True) as server:
        yield server


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
