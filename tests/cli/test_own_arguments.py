"""A password that stands in a command's arguments, and who sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.own_arguments import masked
from support.command_line import HEADRACE
from support.waiting import eventually_sync


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (b"redis://user:secret@host:1/0", b"redis://***********@host:1/0"),
        (b"--redis-url=redis://:secret@host", b"--redis-url=redis://*******@host"),
        (b"redis://host/0?password=secret", b"redis://host/0****************"),
        (b"redis://:a?b@c@host", b"redis://******@host"),
        (b"redis+sentinel://:p@a,b/main?sentinel_password=q", b"redis+sentinel://**@a,b/main********************"),
        (b"unix:///run/redis.sock", b"unix:///run/redis.sock"),
        (b"a text with me@example.org", b"a text with me@example.org"),
        (b"", b""),
    ],
)
def test_what_stays_to_be_seen(argument: bytes, shown: bytes) -> None:
    """The place, at the same length: the kernel's memory cannot grow."""
    assert masked(argument) == shown
    assert len(masked(argument)) == len(argument)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels show a copy, which no process can change")
def test_ps_does_not_show_it(redis_url: str) -> None:
    """Once the command runs."""
    url = redis_url.replace("unix://", "unix://default:tr0ub4dor@") + "?client_name=s3cr3t"
    process = subprocess.Popen([HEADRACE, "status", "--redis-url", url, "--json"], stdout=subprocess.PIPE)
    try:
        os.kill(process.pid, signal.SIGCONT)
        seen = []

        def looked() -> bool:
            seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            return b"status" in seen[-1] and b"tr0ub4dor" not in seen[-1]

        eventually_sync(looked)
        assert b"s3cr3t" not in seen[-1]
        assert b"**@/" in seen[-1]
    finally:
        process.communicate(timeout=30)
