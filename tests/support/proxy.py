"""A proxy on a Unix socket that ill-treats its connections: the network's edge, where faults are made.

It stands between a client and a real server. It can cut every connection, refuse new ones, hold everything
back (a partition: nobody is told), hold back replies alone (a half-open link), and swallow the reply to a
command that the server has executed.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Proxy"]

_CHUNK = 1 << 16
_HEAD = 200
"""Where in a command its name and its script's hash are looked for."""


@dataclass(eq=False)
class _Link:
    """One connection of a client, and the one to the server that was opened for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    reply_doomed: bool = False

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Forwards to the Unix-socket server at `server_url` until told otherwise.

    Args:
        server_url: a `unix://` URL.
    """

    def __init__(self, server_url: str) -> None:
        self._server_path = server_url.removeprefix("unix://")
        self._directory = Path(tempfile.mkdtemp(prefix="headrace-proxy-"))
        self._links: set[_Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._replying = asyncio.Event()
        self._replying.set()
        self._listener: asyncio.Server | None = None
        self._doomed: list[bytes] = []
        self.refusing = False
        """Whether new connections are closed at once."""
        self.delay_s = 0.0
        """How long every reply is held back."""
        self.dropped = 0
        """How many replies were swallowed."""
        self.accepted = 0
        """How many connections clients have opened."""

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"unix://{self._directory}/proxy.sock"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._serve, self._directory / "proxy.sock", limit=_CHUNK)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        self.release()
        self.cut()
        if self._pumps:
            await asyncio.wait(self._pumps)
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- faults -------------------------------------------------------------------------------------------

    def drop_reply_to(self, *words: str) -> None:
        """For each word: the next command that has it in its head is executed, its reply swallowed, the link cut."""
        self._doomed += [word.encode() for word in words]

    def forgive(self) -> None:
        """Drop no reply that is not dropped yet."""
        self._doomed.clear()
        for link in self._links:
            link.reply_doomed = False

    def cut(self) -> None:
        """Close every connection, as a restart of the network would."""
        for link in list(self._links):
            link.cut()

    def hold(self) -> None:
        """Let nothing pass in either direction, and tell nobody."""
        self._flowing.clear()

    def hold_replies(self) -> None:
        """Let commands pass and no replies, and tell nobody."""
        self._replying.clear()

    def release(self) -> None:
        """Let everything pass again that was held."""
        self._flowing.set()
        self._replying.set()

    @property
    def to_drop(self) -> int:
        """How many replies are still to be swallowed."""
        return len(self._doomed)

    # -- forwarding ---------------------------------------------------------------------------------------

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            client_writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server_path, limit=_CHUNK)
        except OSError:
            client_writer.transport.abort()
            return
        link = _Link(client_writer, server_writer)
        self._links.add(link)
        self._pump(link, self._commands(link, client_reader))
        self._pump(link, self._replies(link, server_reader))

    def _pump(self, link: _Link, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._pumps.add(task)

        def ended(_task: asyncio.Task[None]) -> None:
            self._pumps.discard(task)
            self._links.discard(link)
            link.cut()

        task.add_done_callback(ended)

    async def _commands(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                head = data[:_HEAD]
                if word := next((word for word in self._doomed if word in head), None):
                    self._doomed.remove(word)
                    link.reply_doomed = True
                link.server.write(data)
                await link.server.drain()

    async def _replies(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                await self._replying.wait()
                if link.reply_doomed:
                    self.dropped += 1
                    return
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                link.client.write(data)
                await link.client.drain()
