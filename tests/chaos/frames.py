"""How a router's process and a replica's talk: one connection for a batch, a frame there, and two back.

The first frame back says that the batch was taken; without it, it never ran. The second is the outcome. Where jobs end
one by one there are many outcomes, and then a frame that says that there are no more.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

__all__ = ["ENDED", "FAILED", "RAN", "TAKEN", "read_frame", "write_frame"]

TAKEN: Final = b"\x02"
"""The batch is here, and runs now."""
RAN: Final = b"\x00"
"""What follows is the outcome."""
FAILED: Final = b"\x01"
"""What follows is an error in words."""
ENDED: Final = b"\x03"
"""Every job has had its outcome."""

_LENGTH: Final = struct.Struct(">Q")


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame.

    Raises:
        asyncio.IncompleteReadError: the other side went away.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


async def write_frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send a frame."""
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()
