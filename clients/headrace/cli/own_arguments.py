"""Passwords that stand in a command's own arguments, hidden from whoever lists processes.

Better they are not there at all: `HEADRACE_REDIS_URL`, or a file. But where they are, the kernel shows every
process's arguments to everybody, from memory that belongs to the process; so they are overwritten there.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["hide_passwords", "masked"]

_STAT: Final = Path("/proc/self/stat")
_ARG_START, _ARG_END = 47, 48
"""Places of `arg_start` and `arg_end` in proc(5)'s list, from 0."""


def masked(argument: bytes) -> bytes:
    """The argument with asterisks for credentials and query of a URL: as long as it was."""
    start = argument.find(b"://") + 3
    if start < 3:
        return argument
    place = argument.rfind(b"@") if b"@" in argument[start:] else start
    query = argument.find(b"?", place) if b"?" in argument[place:] else len(argument)
    hidden = argument[:start] + b"*" * (place - start) + argument[place:query]
    return hidden + b"*" * (len(argument) - query)


def hide_passwords() -> None:
    """Overwrite them, on Linux; elsewhere, and where the kernel does not tell, nothing happens."""
    with suppress(OSError, ValueError, IndexError):
        name_and_rest = _STAT.read_text("ascii", "replace").rpartition(")")[2].split()
        start, end = (int(name_and_rest[place - 2]) for place in (_ARG_START, _ARG_END))
        if 0 < start < end:
            arguments = ctypes.string_at(start, end - start)
            hidden = b"\0".join(masked(argument) for argument in arguments.split(b"\0"))
            if hidden != arguments:
                ctypes.memmove(start, hidden, len(arguments))
