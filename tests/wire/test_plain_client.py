"""A client with nothing of ours: it submits, is answered, replays, and reads on, as docs/wire.md says."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import headrace
from headrace import Tensor
from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from support.command_line import CountingEngine
from support.service import PlainService

SCRIPTS = Path(headrace.__file__).parent / "lua"


def answer(value: Any) -> Any:
    """A tensor for a list, a failure for "fail", an echo for the rest."""
    if isinstance(value, list):
        return Tensor(dtype="float32", shape=[len(value)], data=struct.pack(f"<{len(value)}f", *value))
    return ItemError(FailureCode.INVALID_INPUT, "as asked") if value == "fail" else value


@pytest.fixture
def restricted_url(redis_url: str) -> Iterator[str]:
    """The server, for a user who may do what the document says a client needs, and nothing else."""
    document = (Path(__file__).parents[2] / "docs" / "wire.md").read_text("utf-8")
    rules = document.partition("```acl client\n")[2].partition("```")[0].split()
    admin: Any = redis.Redis.from_url(redis_url)
    admin.execute_command("ACL", "SETUSER", "plain", "reset", "on", ">secret", *rules)
    yield redis_url.replace("unix://", "unix://plain:secret@")
    admin.execute_command("ACL", "DELUSER", "plain")
    admin.close()


async def test_a_client_in_another_language(redis_url: str, restricted_url: str) -> None:
    engine = CountingEngine()
    engine.answer = answer
    async with PlainService(redis_url, "echo", engine):
        client = Path(__file__).with_name("plain_client.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", client, restricted_url, SCRIPTS, "echo", stdout=PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), timeout=30)
    assert process.returncode == 0
    seen = json.loads(out)

    assert seen["imported"] == []
    assert seen["models"] == ["echo"]
    assert seen["accepted"] == [0] * 300
    assert seen["outputs"] == {f"job-{n}": f"drop {n}" for n in range(300)}
    assert seen["cursors_rise"]
    assert seen["duplicate"] == [1]
    assert seen["replayed"] == [[0], [0]]
    assert seen["tensor"] == [1.0, -0.5]
    assert (seen["state"], seen["no_record"]) == ("ok", [])
    assert (seen["bad_status"], seen["bad_code"]) == ("error", "invalid_input")
    assert seen["unknown_model"] == [4]
    assert sum(engine.ran.values()) == 302  # nothing ran twice
