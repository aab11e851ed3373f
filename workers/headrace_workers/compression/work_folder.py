"""The work folder: where a compression keeps what is finished, beside its output, until that is there."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import CompressionError
from headrace_workers.compression.checkpoint import full_disk_named

__all__ = ["work_folder_held", "work_folder_of"]


def work_folder_of(output: Path) -> Path:
    """Where the checkpoints of a compression to `output` are."""
    return output.parent / f".{output.name}.work"


@contextmanager
def work_folder_held(folder: Path, output: Path) -> Iterator[None]:
    """The work folder, for this process alone, without what a killed process left half-written.

    Raises:
        CompressionError: another process is at work in it, or the disk is full.
    """
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CompressionError(f"another compression is at work in {folder}; wait for it") from None
            for draft in (*folder.glob(".*.tmp"), *output.parent.glob(f".{output.name}.*.tmp")):
                shutil.rmtree(draft, ignore_errors=True)
            yield
