"""A network of its own between one kind of process and the server, which can be cut off as a cable is.

A network namespace, reached over a pair of virtual interfaces; in it a relay listens and passes everything on to the
server's Unix socket. While the link is down, packets are lost and nobody is told: what comes of it is TCP's doing, its
retransmissions and time-outs, and no proxy's.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Final, Self

from support.waiting import eventually

__all__ = ["Island", "can_make_islands"]

_PORT: Final = 6379
_CHUNK: Final = 1 << 16
_DIE_WITH_PARENT: Final = 1
_numbers = itertools.count(os.getpid() % 200)


class Island:
    """What a `Proxy` is to its clients, on a network that can be partitioned.

    Args:
        server_url: a `unix://` URL.
    """

    def __init__(self, server_url: str) -> None:
        self._server_path = server_url.removeprefix("unix://")
        self._name = f"hr{secrets.token_hex(3)}"
        network = f"10.231.{next(_numbers) % 250}"
        self._near, self._far = f"{network}.1", f"{network}.2"
        self._relay: subprocess.Popen[bytes] | None = None
        self.dropped = 0
        """Replies that a proxy would have dropped: none, here packets are."""

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://{self._far}:{_PORT}"

    async def __aenter__(self) -> Self:
        name = self._name
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        _ip("link", "set", f"{name}b", "netns", name)
        _ip("address", "add", f"{self._near}/24", "dev", f"{name}a")
        _ip("-n", name, "address", "add", f"{self._far}/24", "dev", f"{name}b")
        _ip("link", "set", f"{name}a", "up")
        self.mend()
        self._relay = self._start_relay()
        await eventually(self._is_reachable, within_s=10)
        return self

    def _start_relay(self) -> subprocess.Popen[bytes]:
        relay = [sys.executable, "-m", "chaos.island", self._far, self._server_path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(["ip", "netns", "exec", self._name, *relay], env=environment)

    async def _is_reachable(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(self._far, _PORT)
            writer.close()
            return True
        return False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        _ip("netns", "delete", self._name)  # and with it both interfaces

    def cut_off(self) -> None:
        """From now on packets are lost, both ways."""
        # At the far end: without the near one there would be no route, and packets would go to a stranger.
        _ip("-n", self._name, "link", "set", f"{self._name}b", "down")

    def mend(self) -> None:
        """Packets pass again."""
        _ip("-n", self._name, "link", "set", f"{self._name}b", "up")

    def forgive(self) -> None:
        """All is as it should be."""
        self.mend()


@cache
def can_make_islands() -> bool:
    """Whether this process may create network namespaces."""
    name = f"hr{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    _ip("netns", "delete", name)
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _relay(address: str, server_path: str) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(server_path)
        except OSError:  # the server is away, and so is whoever stands for it
            writer.close()
            return
        await asyncio.gather(pump(reader, to_server), pump(from_server, writer))

    async with await asyncio.start_server(serve, address, _PORT) as server:
        await server.serve_forever()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    asyncio.run(_relay(sys.argv[1], sys.argv[2]))
