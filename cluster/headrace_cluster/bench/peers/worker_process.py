"""Starting a peer's worker, and ending it with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["running_worker"]


@contextmanager
def running_worker(url: str, *arguments: str) -> Iterator[None]:
    """Run `python -m ARGUMENTS` beside this file, the server's URL in PEER_URL, for as long as the context lasts."""
    worker = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, "PEER_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
