"""This node, as far as an engine cares: what its processor can do, and how a process must be set up to use it.

`prepare_process` comes before anything is measured, packed or loaded: kernels are chosen by measurement, and a
measurement with other threads or another allocator chooses wrong.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Capabilities", "available_memory_bytes", "capabilities", "give_memory_back", "prepare_process"]

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEEP_BYTES: Final = 1 << 30

_FLAGS: Final = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


class Capabilities(NamedTuple):
    """What this processor has that compressed models care about."""

    architecture: str
    """`x86_64`, `aarch64` …"""
    flags: frozenset[str]
    """Of `avx2`, `avx512_f`, `avx512_vnni`, `avx512_bf16`, `amx_tile`, `amx_int8`, `amx_bf16`, those it has."""
    cores: int
    """Cores that this process may run on."""

    @property
    def bf16(self) -> bool:
        """Whether bf16 is computed by hardware; elsewhere it is emulated, many times slower than fp32."""
        return bool(self.flags & {"avx512_bf16", "amx_bf16"})


def capabilities() -> Capabilities:
    """What torch reports of this processor."""
    import torch

    found = torch.cpu.get_capabilities()
    return Capabilities(
        architecture=str(found.get("architecture", "unknown")),
        flags=frozenset(name for name in _FLAGS if found.get(name)),
        cores=len(os.sched_getaffinity(0)),
    )


def prepare_process(threads: int) -> None:
    """Set up this process for inference on `threads` cores. Calling it again is harmless.

    Raises:
        ValueError: `threads` is less than one.
    """
    if threads < 1:
        raise ValueError(f"a replica needs at least one thread, not {threads}")
    _keep_freed_memory()
    # Tokenizing has a thread of its own already; a pool of as many threads as the node has cores would fight the model.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:  # torch allows it once, before its first parallel work
            log.debug("torch has already started its inter-op threads; nothing of ours uses them")


def _keep_freed_memory() -> None:
    """Have malloc keep what is freed: activations come and go with every batch, and faulting their pages in again
    costs more than computing them (measured: half of the time of a batch).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        log.info("this C library has no mallopt: large buffers are returned to the system after every batch")
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def give_memory_back() -> None:
    """Return to the system what was freed until now. For once after loading, which needs far more than running."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return
    trim(0)


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take: what the system has, and what each of its cgroups leaves it.

    Args:
        root: where `proc` and `sys` are.
    """
    rooms = list(_cgroup_rooms(root))
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            rooms.append(int(line.split()[1]) << 10)
    return max(0, min(rooms))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What is left in the memory cgroups that hold this process, of version 2 and of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):
            room = _room(folder / limit, folder / used, folder / "memory.stat")
            if room is not None:
                yield room
            if folder == top:
                break


def _room(limit: Path, used: Path, stat: Path) -> int | None:
    """A cgroup's limit less what it uses; files that nobody has open any more are not counted, they give way."""
    try:
        most, taken = limit.read_text().strip(), int(used.read_text())
        counts = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) - taken + int(counts.get("inactive_file", 0))
