"""A front that speaks TLS to clients and plainly to a server's Unix socket, as TLS proxies beside a Redis do."""

from __future__ import annotations

import select
import socket
import socketserver
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from support.certificates import Pair

__all__ = ["TlsFront"]

_CHUNK = 1 << 16


class TlsFront:
    """Listens on a port of the loopback interface until the context ends.

    Its handshakes are made on threads, by blocking sockets: asyncio's server does not tell a client why it was
    refused, as Redis does.

    Args:
        path: the socket of the server behind it.
        pair: who it says it is.
        clients_of: if given, the authority that clients need a certificate of.
        port: where it listens; 0: anywhere.
    """

    def __init__(self, path: Path, pair: Pair, *, clients_of: Path | None = None, port: int = 0) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients_of)
        context.load_cert_chain(pair.certificate, pair.key)
        if clients_of is not None:
            context.verify_mode = ssl.CERT_REQUIRED

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, context, path)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _serve(client: socket.socket, context: ssl.SSLContext, path: Path) -> None:
    """One connection, from its handshake until one side hangs up."""
    client.settimeout(10)
    try:
        tls = context.wrap_socket(client, server_side=True)
    except OSError:
        _hang_up_in_order(client)
        return
    with tls, socket.socket(socket.AF_UNIX) as behind, suppress(OSError):
        behind.connect(str(path))
        while True:
            for source in select.select([tls, behind], [], [], 10)[0]:
                if not (data := source.recv(_CHUNK)):
                    return
                while source is tls and tls.pending():
                    data += tls.recv(tls.pending())
                (behind if source is tls else tls).sendall(data)


def _hang_up_in_order(client: socket.socket) -> None:
    """Read what the client has sent meanwhile: closed at once, it might never see why."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        client.settimeout(1)
        while client.recv(_CHUNK):
            pass
