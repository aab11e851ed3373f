"""A Redis Cluster of local processes: masters of the embedded server's program, and slots that can be moved."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import redis
from redis.crc import key_slot

from headrace.keys import keys_of
from headrace_cluster.embedded import EmbeddedServer
from support.waiting import eventually_sync

__all__ = ["RedisCluster", "free_ports", "slot_of"]

SLOTS = 16_384


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def slot_of(model: str) -> int:
    """The slot in which all keys of a model lie."""
    return int(key_slot(keys_of(model).prefix.encode()))


class RedisCluster:
    """As many masters as asked for, with the slots shared out evenly, in order.

    Args:
        masters: how many.
        options: of each server.
    """

    def __init__(self, masters: int = 3, *, options: dict[str, str] | None = None) -> None:
        ports = free_ports(2 * masters)
        self.servers = [
            EmbeddedServer(
                fsync="no",
                port=port,
                die_with_parent=True,
                options={
                    "cluster-enabled": "yes",
                    "cluster-port": str(bus),
                    "cluster-config-file": "nodes.conf",
                    "cluster-node-timeout": "2000",
                    "cluster-require-full-coverage": "no",
                    "hz": "100",
                    **(options or {}),
                },
            )
            for port, bus in zip(ports[:masters], ports[masters:], strict=True)
        ]
        self._buses = ports[masters:]
        self._stack = ExitStack()
        self.nodes: list[redis.Redis] = []

    @property
    def url(self) -> str:
        """How clients reach it: by two of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
                self.nodes.append(stack.enter_context(redis.Redis.from_url(server.url)))
            self._meet()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _meet(self) -> None:
        share = SLOTS // len(self.nodes)
        for n, node in enumerate(self.nodes):
            last = SLOTS - 1 if n == len(self.nodes) - 1 else (n + 1) * share - 1
            say(node, "CLUSTER", "ADDSLOTSRANGE", n * share, last)
            say(node, "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server, bus in zip(self.servers[1:], self._buses[1:], strict=True):
            say(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        eventually_sync(lambda: all(self._agreed(node) for node in self.nodes), within_s=20)

    def _agreed(self, node: redis.Redis) -> bool:
        info = dict(line.split(":", 1) for line in text(say(node, "CLUSTER", "INFO")).split())
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    # -- who has what -----------------------------------------------------------------------------------

    def owner(self, slot: int) -> int:
        """Which of the nodes has a slot."""
        for first, last, (_, port, *_), *_ in say(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(n for n, server in enumerate(self.servers) if server.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def keys(self, node: int) -> list[str]:
        """The keys that lie on one node."""
        return sorted(name.decode() for name in self.nodes[node].scan_iter(count=1000))

    # -- moving slots -----------------------------------------------------------------------------------

    def begin_move(self, slot: int, to: int) -> None:
        """Have a slot on its way: from now on its owner sends on what it does not have (any more)."""
        source = self.owner(slot)
        say(self.nodes[to], "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        say(self.nodes[source], "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(to))

    def move_keys(self, slot: int, to: int, names: Iterable[bytes] | None = None) -> None:
        """Move the keys of a slot that is on its way, or some of them."""
        source = self.owner(slot)
        for name in self.keys_in(source, slot) if names is None else names:
            say(self.nodes[source], "MIGRATE", "127.0.0.1", self.servers[to].port, name, 0, 5000)

    def keys_in(self, node: int, slot: int) -> list[bytes]:
        """The keys of a slot that lie on a node."""
        found: list[bytes] = say(self.nodes[node], "CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        return found

    def end_move(self, slot: int, to: int) -> None:
        """Make the new owner known."""
        for node in (self.nodes[to], *self.nodes):
            say(node, "CLUSTER", "SETSLOT", slot, "NODE", self._id(to))

    def give_up_move(self, slot: int) -> None:
        """Leave a slot that is on its way, and of which nothing has gone yet, where it is."""
        for node in self.nodes:
            say(node, "CLUSTER", "SETSLOT", slot, "STABLE")

    def move(self, slot: int, to: int) -> None:
        """Move a slot with all that is in it, while clients go on."""
        self.begin_move(slot, to)
        while self.keys_in(self.owner(slot), slot):
            self.move_keys(slot, to)
        self.end_move(slot, to)

    def _id(self, node: int) -> str:
        return text(say(self.nodes[node], "CLUSTER", "MYID"))


def say(node: redis.Redis, *words: Any) -> Any:
    """A command with its raw reply: redis-py would shape those of CLUSTER."""
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


def text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
