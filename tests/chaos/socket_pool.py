"""A pool of replicas in processes of their own: the port that routers call, over Unix sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

from chaos.frames import ENDED, FAILED, TAKEN, read_frame, write_frame
from headrace_cluster.pools.port import BatchFailedError, ReplicaLostError

__all__ = ["SocketPool", "socket_of"]

_LOOK_EVERY_S: Final = 0.05


def socket_of(directory: Path, replica: str) -> Path:
    """Where a replica listens. That the socket is there means that the replica is ready."""
    return directory / f"{replica}.sock"


class SocketPool:
    """The replicas whose sockets lie in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._watching: asyncio.Task[None] | None = None

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` now and whenever a replica comes or goes."""
        listener(self._present())
        self._watching = asyncio.create_task(self._watch(listener))

    def _present(self) -> frozenset[str]:
        return frozenset(path.stem for path in self._directory.glob("*.sock"))

    async def _watch(self, listener: Callable[[frozenset[str]], None]) -> None:
        known = self._present()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if (present := self._present()) != known:
                known = present
                listener(known)

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Have a replica run a packed batch."""
        async with aclosing(self._frames(replica, batch)) as frames:
            return await anext(frames)

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Have a replica run a packed batch whose jobs end one by one."""
        async with aclosing(self._frames(replica, batch)) as frames:
            async for frame in frames:
                yield frame

    async def _frames(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """What a replica says of a batch, until it says that this is all."""
        try:
            reader, writer = await asyncio.open_unix_connection(socket_of(self._directory, replica))
        except OSError as error:
            raise ReplicaLostError(f"{replica} is not there: {error!r}", reached=False) from error
        taken = False
        try:
            await write_frame(writer, batch)
            taken = await read_frame(reader) == TAKEN
            while (reply := await read_frame(reader)) != ENDED:
                if reply[:1] == FAILED:
                    raise BatchFailedError(f"{replica}: {reply[1:].decode()}")
                yield reply[1:]
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ReplicaLostError(f"{replica}: {error!r}", reached=taken) from error
        finally:
            writer.close()

    async def kill(self, replica: str) -> None:
        """End the process of a replica."""
        with suppress(OSError, asyncio.IncompleteReadError):
            _, writer = await asyncio.open_unix_connection(socket_of(self._directory, replica))
            credentials = writer.get_extra_info("socket").getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            os.kill(struct.unpack("3i", credentials)[0], signal.SIGKILL)
            writer.close()
