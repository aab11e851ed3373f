"""`headrace serve` as people run it: it starts, answers, and when it is stopped nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import Client, Job, JobState
from headrace.cli.output import Exit
from headrace_cluster.embedded import EmbeddedServer
from support.processes import family
from support.serving import START_S, STOP_S, Place, next_line, nothing_stays
from support.waiting import eventually_sync

pytestmark = pytest.mark.ray


def test_sigterm_finishes_what_is_in_hand(place: Place) -> None:
    """The answer is in the data directory, for whoever serves it next."""
    fragile = {"engine": {"kind": "custom", "target": "support.engines:FragileEngine"}}
    data = place.folder / "data"
    process = place.start("--config", place.write({"models": {"fragile": fragile}}), "--data", data, "--json")
    said = json.loads(next_line(process))
    assert said == {"redis_url": f"unix://{data}/redis.sock", "models": ["fragile"], "ready": True}
    with Client(said["redis_url"]) as client:
        receipt = client.submit(Job(model="fragile", input="sleep:1"))
        eventually_sync(lambda: client.status(receipt.id, model="fragile").state is JobState.RUNNING)
    processes = family(process.pid)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, out, err) == (Exit.DONE, "", "")
    nothing_stays(place, processes)
    with EmbeddedServer(data) as server, Client(server.url) as client:
        assert client.result(receipt, timeout_s=5).ok


def test_a_service_manager_may_stop_all_processes_at_once(place: Place) -> None:
    """Ray's too: then there is nobody left to wait for, and it does not wait."""
    process = place.start("--config", place.write({"models": {"echo": {"engine": {"kind": "echo"}}}}), "--json")
    assert json.loads(next_line(process))["ready"]
    processes = family(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=STOP_S)
    assert process.returncode == Exit.DONE
    nothing_stays(place, processes)


@pytest.mark.parametrize(
    ("number", "last_started"),
    [(signal.SIGINT, "raylet"), (signal.SIGTERM, "raylet"), (signal.SIGTERM, "ray::ServeContr")],
)
def test_it_can_be_stopped_before_it_is_ready(place: Place, number: signal.Signals, last_started: str) -> None:
    """While Ray is being started, and while the application is."""
    process = place.start("--config", place.write({"models": {"echo": {"engine": {"kind": "echo"}}}}), "--json")
    eventually_sync(lambda: any(member.name == last_started for member in family(process.pid)), within_s=START_S)
    processes = family(process.pid)
    process.send_signal(number)
    out, _ = process.communicate(timeout=STOP_S)
    assert process.returncode == Exit.INTERRUPTED
    assert json.loads(out)["error"]["code"] == "interrupted"
    nothing_stays(place, processes)


RAY = """
import ray, sys
print(ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1]).address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


def test_redis_and_ray_that_are_named(place: Place, redis_url: str) -> None:
    """It uses them, and leaves them as they were."""
    place.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-and-of-no-other-cluster"}
    head = subprocess.Popen(
        [sys.executable, "-c", RAY, place.folder / "ray"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=place.environment,
        start_new_session=True,
    )
    place.started.append(head)
    assert head.stdout is not None
    place.environment["RAY_ADDRESS"] = head.stdout.readline().strip()
    config = place.write({"models": {"echo": {"engine": {"kind": "echo"}}}, "redis_url": "redis://localhost:1"})
    process = place.start("-c", config, "-u", redis_url, "--json")
    assert json.loads(next_line(process)) == {"redis_url": redis_url, "models": ["echo"], "ready": True}
    assert "raylet" not in {member.name for member in family(process.pid)}
    with Client(redis_url) as client:
        assert client.run(Job(model="echo", input="hello"), timeout_s=30).unwrap() == "hello"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)
        client.ping()
    assert process.returncode == Exit.DONE
    assert "raylet" in {member.name for member in family(head.pid)}
    assert not place.data.exists()


# -- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(place: Place) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs what must end before a Ray is started; gives exit status and error."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        process = place.start(*arguments, "--json")
        out, err = process.communicate(timeout=START_S)
        assert "Traceback" not in err
        assert list(place.temporary.iterdir()) == []
        error: dict[str, Any] = json.loads(out)["error"]
        return process.returncode, error

    return run


def test_redis_is_down(place: Place, refused: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    """A named error, before anything is started."""
    config = place.write({"models": {"echo": {"engine": {"kind": "echo"}}}})
    status, error = refused("-c", config, "--redis-url", "redis://:s3cret@localhost:1")
    assert (status, error["code"]) == (Exit.UNAVAILABLE, "redis_unavailable")
    assert "s3cret" not in error["message"]
    assert error["hint"].startswith("start Redis or `headrace serve`")


def test_ray_is_down(place: Place, refused: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    """The one that is named."""
    place.environment["RAY_ADDRESS"] = "127.0.0.1:1"
    status, error = refused("-c", place.write({"models": {"echo": {"engine": {"kind": "echo"}}}}))
    assert (status, error["code"]) == (Exit.UNAVAILABLE, "ray_unavailable")
    assert error["message"] == "no Ray answers at RAY_ADDRESS, 127.0.0.1:1: Connection refused"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["minilm=/no/such/folder"], "model_load", "models.minilm: there is no folder '/no/such/folder'"),
        (["minilm"], "usage", "Invalid value for NAME=MODEL: 'minilm' is not NAME=MODEL"),
        ([], "usage", "nothing to host"),
        (["a=/tmp", "--fsync", "never"], "usage", "Invalid value for --fsync: is everysec or always"),
        (["--config", "/no/such.yaml"], "config", "/no/such.yaml: cannot be read: No such file or directory"),
    ],
)
def test_wrong_arguments(
    refused: Callable[..., tuple[int, dict[str, Any]]], arguments: list[str], code: str, said: str
) -> None:
    """Exit status 2."""
    status, error = refused(*arguments)
    assert (status, error["code"], error["message"]) == (Exit.USAGE, code, said)
