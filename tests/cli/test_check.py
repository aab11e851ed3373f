"""`headrace check`: what it says of a configuration before anything is rolled out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from headrace.cli.output import Exit
from headrace_cluster.bench.models import packaged_encoder
from headrace_workers.compression.build import build_artifact
from support.command_line import HEADRACE, Run

ECHO: dict[str, Any] = {"engine": {"kind": "echo"}}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a configuration of these models; no server is named but by it."""

    def write(redis_url: str = "", **models: Any) -> Path:
        monkeypatch.delenv("HEADRACE_REDIS_URL", raising=False)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"models": models} | ({"redis_url": redis_url} if redis_url else {})))
        return file

    return write


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM in int8, on disk."""
    folder = tmp_path_factory.mktemp("artifacts") / "minilm"
    build_artifact(packaged_encoder(), folder)
    return folder


# -- what is right --------------------------------------------------------------------------------------------------


async def test_a_good_configuration(headrace: Run, config: Any, redis_url: str) -> None:
    """Every model is loaded and answers; the server is told by name and version."""
    file = config(redis_url, one=ECHO, two=ECHO)
    ran = await headrace("check", file, "--json")
    assert ran.status == Exit.DONE
    assert ran.last["config"] == str(file)
    assert {model: report["task"] for model, report in ran.last["models"].items()} == {"one": "echo", "two": "echo"}
    assert ran.last["redis"]["append_only"] is True
    assert ran.last["redis"]["version"]
    shown = await headrace("check", file)
    assert "an append-only file" in shown.out
    assert "two: echo, variant echo on cpu; loaded in " in shown.out
    steps = [line for line in shown.err.splitlines() if line.startswith("…")]
    assert steps == ["… asking Redis", "… loading one", "… loading two"]
    # The tests' server leaves writing to the operating system, and that is told.
    assert [line for line in shown.err.splitlines() if "appendfsync everysec" in line]
    assert ran.last["redis"]["durability"] == "none"


async def test_without_redis(headrace: Run, config: Any) -> None:
    """None is named, or it is not to be asked."""
    assert (await headrace("check", config(echo=ECHO), "--json")).last["redis"] is None
    ran = await headrace("check", config("redis://localhost:1", echo=ECHO), "--skip-redis")
    assert (ran.status, ran.out.splitlines()[0]) == (Exit.DONE, "redis: not asked")


async def test_an_artifact_is_loaded_and_answers(headrace: Run, config: Any, artifact: Path) -> None:
    """In the variant that the artifact holds."""
    ran = await headrace("check", config(minilm={"engine": {"model": str(artifact)}}), "--json")
    report = ran.last["models"]["minilm"]
    assert (ran.status, report["task"], report["variant"]) == (Exit.DONE, "embedding", "int8")
    assert report["answer_ms"] > 0


# -- what is wrong --------------------------------------------------------------------------------------------------


def test_a_typing_error_in_a_key(tmp_path: Path) -> None:
    """By the installed command: what it prints, where, and how it ends."""
    file = tmp_path / "config.yaml"
    file.write_text("models: {echo: {engine: {kind: echo}, batchin: {max_jobs: 4}}}")
    done = subprocess.run([HEADRACE, "check", file, "--json"], capture_output=True, text=True, check=False)
    said = f"{file}: models.echo.batchin: there is no such key; did you mean batching?"
    assert done.returncode == Exit.USAGE
    assert done.stderr == f"error: {said}\n"
    assert f'"error": {{"code": "config", "message": "{said}", "hint": ""}}' in done.stdout


def tampered(artifact: Path, copy: Path) -> Path:
    """A copy in which one bit of the weights is another; returns their file."""
    shutil.copytree(artifact, copy)
    weights = max(copy.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return weights


async def test_a_tampered_artifact(headrace: Run, config: Any, artifact: Path, tmp_path: Path) -> None:
    """One bit is enough; the file is named."""
    weights = tampered(artifact, copy := tmp_path / "copy")
    ran = await headrace("check", config(minilm={"engine": {"model": str(copy)}}), "--json")
    error = ran.last["error"]
    assert (ran.status, error["code"]) == (Exit.USAGE, "artifact_tampered")
    assert error["message"].startswith(f"models.minilm: {weights} is not the file that the manifest describes")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"model": "/no/such/artifact"}, "there is no folder '/no/such/artifact'"),
        ({"model": str(Path(__file__).parent)}, "holds no model: it has no config.json"),
        ({"model": str(packaged_encoder()), "task": "token_classification"}, "has no weights for classifier"),
        ({"kind": "custom", "target": "no_such_module:Engine"}, "importing no_such_module failed"),
        (
            {"kind": "custom", "target": "support.engines:FragileEngine", "options": {"example": "raise"}},
            "it is loaded, but does not answer its own example: RuntimeError: as asked",
        ),
        (
            {"kind": "custom", "target": "support.engines:FragileEngine", "options": {"example": "refuse"}},
            "it is loaded, but does not answer its own example: as asked",
        ),
    ],
)
async def test_a_model_that_cannot_serve(headrace: Run, config: Any, engine: dict[str, Any], said: str) -> None:
    """Named by its key, with what it lacks."""
    ran = await headrace("check", config(echo=ECHO, bad={"engine": engine}), "--json")
    error = ran.last["error"]
    assert (ran.status, error["code"]) == (Exit.USAGE, "model_load")
    assert error["message"].startswith("models.bad: ")
    assert said in error["message"]


async def test_redis_is_down(headrace: Run, config: Any) -> None:
    """The same error and exit status that every command has for it, before any model is loaded."""
    ran = await headrace("check", config("redis://:s3cret@localhost:1", bad={"engine": {"model": "/none"}}), "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.UNAVAILABLE, "redis_unavailable")
    assert "s3cret" not in ran.out + ran.err


async def test_a_url_that_is_none(headrace: Run, config: Any) -> None:
    """Not a traceback."""
    ran = await headrace("check", config("http://localhost", echo=ECHO), "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "redis_setup")


async def test_a_server_that_evicts(headrace: Run, config: Any, redis_url: str) -> None:
    """It would throw away jobs; the message says what to set."""
    with redis.Redis.from_url(redis_url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("maxmemory", "1gb")
        try:
            ran = await headrace("check", config(redis_url, echo=ECHO), "--json")
        finally:
            admin.config_set("maxmemory", "0")
            admin.config_set("maxmemory-policy", "noeviction")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "redis_eviction")
    assert "CONFIG SET maxmemory-policy noeviction" in ran.last["error"]["message"]
