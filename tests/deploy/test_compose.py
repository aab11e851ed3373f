"""The service on one machine: the file is right, mistakes in it are found, and its example does what it says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from deploy.compose_file import DEPLOY, compose_faults, compose_file
from support.service import PlainService


def test_nothing_is_wrong_with_it() -> None:
    """Compose's schema, names, images, variables, ports, times and the files that it mounts."""
    assert compose_faults(compose_file()) == []


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda services: services["head"].update(comand=services["head"].pop("command")), "comand"),
        (lambda services: services["redis"].update(ports=["6379:6379"]), "open to other machines"),
        (lambda services: services["redis"].update(command=["valkey-server", "--appendonly", "no"]), "keeps no"),
        (lambda services: services["worker"]["depends_on"].update(hed={"condition": "service_started"}), "no service"),
        (lambda services: services["head"].pop("healthcheck"), "which nobody looks after"),
        (lambda services: services["head"].update(image="headrace-cpu:latest"), "has no version"),
        (lambda services: services["head"].update(stop_grace_period="30s"), "grace is too short"),
        (lambda services: services["worker"]["command"].append("--address=haed:6379"), "haed is no service"),
        (
            lambda services: services["producer"]["environment"].update(HEADRACE_REDIS_URI="x"),
            "HEADRACE_REDIS_URI is no",
        ),
        (lambda services: services["head"]["volumes"].append("./nothing:/x"), "there is no ./nothing"),
    ],
    ids=["field", "port", "file", "name", "health", "image", "grace", "address", "variable", "folder"],
)
def test_mistakes_are_found(plant: Callable[[dict[str, Any]], object], found: str) -> None:
    """Each planted, and found by its words."""
    content = compose_file()
    plant(content["services"])
    faults = compose_faults(content)
    assert [words for words in faults if found in words], faults


async def test_the_example(echo_service: PlainService, redis_url: str) -> None:
    """The producer hands over and is gone; the consumer reads what it never saw handed over, and clears it away."""
    assert await asyncio.to_thread(example, redis_url, "produce", "echo", "5") == "handed over 5 jobs\n"
    lines = (await asyncio.to_thread(example, redis_url, "consume", "echo", "5")).splitlines()
    assert [line.partition(" ")[2] for line in lines] == [f"line {n}" for n in range(5)]


def example(url: str, *arguments: str) -> str:
    environment = {**os.environ, "HEADRACE_REDIS_URL": url}
    command = [sys.executable, str(DEPLOY / "compose" / "example.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
