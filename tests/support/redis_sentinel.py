"""A master, a replica and three sentinels, all processes of this machine."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from headrace_cluster.embedded import EmbeddedServer, find_server
from support.redis_cluster import free_ports
from support.waiting import eventually_sync

__all__ = ["SERVICE", "WatchedRedis"]

SERVICE: Final = "main"

_SENTINEL: Final = """
port {port}
bind 127.0.0.1
dir {directory}
protected-mode no
logfile sentinel.log
sentinel monitor {service} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {service} 1500
sentinel failover-timeout {service} 2000
{more}
"""


class WatchedRedis:
    """Two servers, of which sentinels make the second the master when the first dies.

    Args:
        options: of both servers. If they ask for a password, nobody waits until sentinels know each other.
        sentinel_lines: more lines for the sentinels' configuration; `{service}` stands for the master's name.
    """

    def __init__(self, *, options: dict[str, str] | None = None, sentinel_lines: str = "") -> None:
        first, second, *self.sentinel_ports = free_ports(5)
        common = {"repl-diskless-sync-delay": "0", "hz": "100", **(options or {})}
        self.servers = [
            EmbeddedServer(fsync="no", port=first, die_with_parent=True, options=common),
            EmbeddedServer(
                fsync="no", port=second, die_with_parent=True, options={**common, "replicaof": f"127.0.0.1 {first}"}
            ),
        ]
        self._locked = "requirepass" in common
        self._lines = sentinel_lines.format(service=SERVICE)
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """How clients reach the master, whichever it is."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            for port in self.sentinel_ports:
                self._start_sentinel(port, stack)
            if not self._locked:
                eventually_sync(self._copying, within_s=20)
                eventually_sync(self._all_know_each_other, within_s=20)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start_sentinel(self, port: int, stack: ExitStack) -> None:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-sentinel-"))
        file = Path(directory) / "sentinel.conf"
        file.write_text(
            _SENTINEL.format(
                port=port, directory=directory, service=SERVICE, master=self.servers[0].port, more=self._lines
            )
        )
        process = subprocess.Popen(
            [find_server(), file, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(_end, process)

    def _all_know_each_other(self) -> bool:
        states = [self.master_state(port) for port in self.sentinel_ports]
        return all(state and state["num-slaves"] == 1 and state["num-other-sentinels"] == 2 for state in states)

    def _copying(self) -> bool:
        with redis.Redis.from_url(self.servers[1].url) as replica:
            return str(replica.info("replication")["master_link_status"]) == "up"

    def master_state(self, port: int) -> dict[str, Any] | None:
        """What one sentinel knows of the master; None while it does not answer."""
        try:
            with redis.Redis(port=port) as sentinel:
                state: dict[str, Any] = sentinel.sentinel_master(SERVICE)
                return state
        except redis.exceptions.RedisError:
            return None

    @property
    def master_port(self) -> int:
        """Where the first sentinel sees the master."""
        state = self.master_state(self.sentinel_ports[0])
        return int(state["port"]) if state else 0

    def wait_until_copied(self) -> None:
        """Return when the replica has all that the master has been given."""
        with redis.Redis.from_url(self.servers[0].url) as master:
            assert master.wait(1, 10_000) == 1


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
