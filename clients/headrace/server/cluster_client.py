"""A client of a Redis Cluster: one client for each node, and the map that says which node has which slot.

All keys of a model lie in one slot, so that every command we send has one place to go to. That is what makes
this so much less than a general cluster client: nothing is ever split but a list of requests about several
models. The map is asked for when it is missing or proves wrong, and mended by what the nodes answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import ConnectionPool
from redis.crc import key_slot

from headrace.keys import declared_keys
from headrace.server.redis_client import RedisClient, Request, go_on
from headrace.server.redis_errors import is_lasting

__all__ = ["ClusterClient", "key_of"]

Address = tuple[str, int]

_REDIRECTS: Final = 5
"""How often a command may be sent on before it counts as lost; each step mends the map."""
_SECOND: Final = frozenset({"XINFO", "XGROUP", "OBJECT", "MEMORY"})
"""Commands whose first argument is a subcommand and whose second is the key."""
_KEYLESS: Final = frozenset(
    {"PING", "TIME", "INFO", "CONFIG", "HELLO", "SCRIPT", "CLUSTER", "ACL", "CLIENT", "WAITAOF"}
)
_EVERYWHERE: Final = frozenset({"PING", "INFO", "SCRIPT"})


def key_of(args: Sequence[Any]) -> str | bytes | None:
    """The key that says where a command goes, or None if it names none."""
    words = [*args[0].split(), *args[1:]]
    name = words[0].upper()
    if name in _KEYLESS:
        return None
    key: str | bytes = words[_place_of_key(name, words)]
    return key


def _place_of_key(name: str, words: Sequence[Any]) -> int:
    if name in ("EVAL", "EVALSHA"):
        return 3
    if name in ("XREAD", "XREADGROUP"):
        return words.index("STREAMS") + 1
    return 2 if name in _SECOND else 1


def declared(args: Sequence[Any]) -> Sequence[Any]:
    """A script's call with the keys it must name on a cluster."""
    if args[0] == "EVALSHA" and int(args[2]) == 1:
        keys = declared_keys(str(args[3]))
        return (args[0], args[1], len(keys), *keys, *args[4:])
    return args


class ClusterClient(RedisClient):
    """Sends each command to the master that has its key.

    Args:
        pool: of the first seed; never connects itself.
        seeds: some nodes of the cluster.
        connect: makes the client of one node; it should not retry by itself.
        retries: how often a command is tried again, with the map asked for anew.
    """

    def __init__(
        self, pool: ConnectionPool, *, seeds: Sequence[Address], connect: Callable[[Address], RedisClient], retries: int
    ) -> None:
        super().__init__(pool, retries=retries)
        self._seeds = list(seeds)
        self._connect = connect
        self._nodes: dict[Address, RedisClient] = {}
        self._slots: dict[int, Address] = {}
        self._learning = asyncio.Lock()
        self._learned = 0

    # -- running commands -------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command where its key lies; one without a key, where it makes sense."""
        key = key_of(args)
        if key is None:
            return await self._retries.call_with_retry(partial(self._without_key, args, options), go_on)
        return await self._retries.call_with_retry(partial(self._send, key, declared(args), options), go_on)

    async def execute_near(self, key: str, *args: Any) -> Any:
        """Run a command that names no key on the node where `key` lies."""
        return await self._retries.call_with_retry(partial(self._send, key, args, {}), go_on)

    async def execute_together(self, requests: Sequence[Request]) -> list[Any]:
        """Run idempotent commands in one round trip to each node that is concerned, their replies in order."""
        return await self._retries.call_with_retry(partial(self._send_together, requests), go_on)

    async def masters(self) -> Sequence[RedisClient]:
        """The nodes that take writes."""
        return [self._node(address) for address in await self._addresses()]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            with suppress(Exception):
                await node.aclose()
        await super().aclose(close_connection_pool)

    async def _send(self, key: str | bytes, args: Sequence[Any], options: dict[str, Any]) -> Any:
        address = await self._address_of(key_slot(_as_bytes(key)))
        for _ in range(_REDIRECTS):
            try:
                return await self._node(address).execute_command(*args, **options)
            except exceptions.MovedError as moved:
                address = self._moved(moved, address)
            except exceptions.AskError as asked:
                return await self._ask(_address(asked, address), args)
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError):
                self._slots.clear()
                raise
        raise exceptions.ClusterDownError("sent on from node to node")

    async def _ask(self, address: Address, args: Sequence[Any]) -> Any:
        """The slot is on its way to another node, and what the command names has gone there already."""
        return (await self._node(address).send_together([("ASKING",), tuple(args)]))[1]

    async def _send_together(self, requests: Sequence[Request]) -> list[Any]:
        by_node: dict[Address, list[int]] = {}
        for place, request in enumerate(requests):
            key = key_of(request)
            assert key is not None, "only commands with a key are sent together"
            by_node.setdefault(await self._address_of(key_slot(_as_bytes(key))), []).append(place)
        replies: list[Any] = [None] * len(requests)
        await asyncio.gather(*(self._send_some(node, places, requests, replies) for node, places in by_node.items()))
        return replies

    async def _send_some(
        self, address: Address, places: Sequence[int], requests: Sequence[Request], replies: list[Any]
    ) -> None:
        """Send those of the requests that belong to one node, and what it sends on, one by one."""
        node, some = self._node(address), [declared(requests[place]) for place in places]
        try:
            answers = await node.attempt(partial(node.send_together, some, raising=False))
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            self._slots.clear()
            raise
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, exceptions.AskError):  # MovedError is one, too
                answer = await self._send(key_of(requests[place]) or "", declared(requests[place]), {})
            elif isinstance(answer, Exception):
                raise answer
            replies[place] = answer

    async def _without_key(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        name = args[0].split()[0].upper()
        addresses = await self._addresses()
        if name not in _EVERYWHERE:
            return await self._node(random.choice(addresses)).execute_command(*args, **options)
        replies = await asyncio.gather(*(self._node(place).execute_command(*args, **options) for place in addresses))
        # The master that started last speaks for all: what is asked for is whether one of them was down a moment ago.
        return min(replies, key=lambda info: int(info.get("uptime_in_seconds", 0))) if name == "INFO" else replies[0]

    # -- the map ----------------------------------------------------------------------------------------

    def _node(self, address: Address) -> RedisClient:
        if address not in self._nodes:
            self._nodes[address] = self._connect(address)
        return self._nodes[address]

    def _moved(self, error: exceptions.MovedError, asked: Address) -> Address:
        address = self._slots[error.slot_id] = _address(error, asked)
        return address

    async def _address_of(self, slot: int) -> Address:
        if slot not in self._slots:
            await self._learn()
        if slot not in self._slots:
            raise exceptions.ClusterDownError(f"no node has the slot {slot}")
        return self._slots[slot]

    async def _addresses(self) -> list[Address]:
        if not self._slots:
            await self._learn()
        return sorted(set(self._slots.values()))

    async def _learn(self) -> None:
        """Ask any node that answers which slots are where. Who comes while that goes on shares the answer."""
        before = self._learned
        async with self._learning:
            if self._learned == before:
                self._slots = await self._ask_for_map()
                self._learned += 1
                await self._forget_others(set(self._slots.values()))

    async def _ask_for_map(self) -> dict[int, Address]:
        candidates = list(dict.fromkeys([*random.sample(list(self._nodes), len(self._nodes)), *self._seeds]))
        failure: Exception = exceptions.ConnectionError("no node of the cluster is known")
        for address in candidates:
            try:
                return _slots_of(await self._node(address).execute_command("CLUSTER", "SLOTS"), address)
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterDownError) as error:
                if is_lasting(error):
                    raise
                failure = error
        raise failure

    async def _forget_others(self, masters: set[Address]) -> None:
        for address in self._nodes.keys() - masters - set(self._seeds):
            with suppress(Exception):
                await self._nodes.pop(address).aclose()


def _slots_of(reply: Sequence[Any], asked: Address) -> dict[int, Address]:
    """The reply to CLUSTER SLOTS. A node that does not know its own name is where it was asked."""
    slots: dict[int, Address] = {}
    for first, last, (host, port, *_), *_replicas in reply:
        address = (host.decode() if host else asked[0], int(port))
        slots.update(dict.fromkeys(range(int(first), int(last) + 1), address))
    return slots


def _address(error: exceptions.AskError, asked: Address) -> Address:
    return error.host or asked[0], int(error.port)


def _as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
