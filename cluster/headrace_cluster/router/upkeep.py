"""What a router does for its model beside routing when there is cause: ask who reads, take over, cancel.

`Rounds` find out what there is cause for, for all models of a process at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol
from zlib import crc32

import redis.asyncio

from headrace import scripts
from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.scripts import Reaped
from headrace.server.clock import ServerClock
from headrace.server.connection import execute, translated
from headrace.serving.due import Due, Watched
from headrace_cluster.router.generation import GenerationFence

__all__ = ["Leaseholder", "Upkeep"]

log = logging.getLogger("headrace.router")

_CLOCK_EVERY: Final = 120
"""Rounds from one look at the server's time to the next."""
_REAP_EVERY: Final = 40
"""Rounds after which the dead are looked for in all lanes, whatever was found: a consumer of an older version, or one
that was taken for dead and died before it looked again at what it held, need not stand in the last lane."""
_REAP_AT_ONCE: Final = 64
_LOOK_BACK_MS: Final = 60_000
"""How far back a new router reads requests to cancel; what it takes over carries its own."""


class Leaseholder(Protocol):
    """What is asked of a `Lease`."""

    consumer: str

    async def wait_held(self) -> None:
        """Return when nobody takes over what this consumer holds."""
        ...

    @property
    def may_reap(self) -> bool:
        """Whether consumers without a heartbeat are dead for certain."""
        ...

    @property
    def lapses(self) -> int:
        """How often others may have taken over what this consumer held."""
        ...

    def leave(self, model: str) -> None:
        """Beat no more on the lanes of a model, whose router has ended."""
        ...


class Upkeep:
    """The upkeep of one router.

    Args:
        model: whose lanes.
        client: for commands; it tries none of them twice by itself.
        lease: of the consumer that takes over.
        clock: looked at the server's time now and then.
        fence: told which generation reads.
        room: how many jobs may be taken over now.
        take_over: gets jobs of dead consumers.
        look_again: looks at everything that this consumer holds.
        cancel: gets the ids of jobs that somebody wants cancelled.
        led: called when this generation begins or ceases to read.
        hand_back: gives the jobs back that are held still, long after another generation began to read.
        spawn: starts a task.
    """

    def __init__(
        self,
        model: str,
        client: redis.asyncio.Redis,
        lease: Leaseholder,
        clock: ServerClock,
        fence: GenerationFence,
        *,
        room: Callable[[], int],
        take_over: Callable[[Sequence[Reaped]], None],
        look_again: Callable[[], None],
        cancel: Callable[[Sequence[str]], None],
        led: Callable[[], None],
        hand_back: Callable[[], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.model = model
        self._client = client
        self._lease = lease
        self._clock = clock
        self._room = room
        self._take_over = take_over
        self._look_again = look_again
        self._cancel = cancel
        self._fence = fence
        self._led = led
        self._hand_back = hand_back
        self._spawn = spawn
        self._cancels_after = ""
        self._leader: int | None = None
        self._was_able = False
        self._reap_at = 0
        self._look_at = 0
        self._phase = crc32(model.encode())
        self._busy = False

    @property
    def watched(self) -> Watched:
        """What rounds must know to find out whether there is cause for anything."""
        return Watched(self.model, self._leader, self._cancels_after)

    def visit(self, found: Due, number: int) -> None:
        """See to what a round found, and to what is due at its number.

        It goes on in a task. What comes while an earlier round is still seen to is found again by the next.
        """
        if self._busy:
            return
        works = list(self._works(found, number))
        if works:
            self._busy = True
            self._spawn(self._see_to(works))

    def _works(self, found: Due, number: int) -> Sequence[Callable[[], Awaitable[None]]]:
        works: list[Callable[[], Awaitable[None]]] = []
        if Due.CANCELS in found:
            works.append(self._read_cancels)
        if Due.LEADER in found or self._fence.able != self._was_able:
            works.append(self.ask_who_leads)
        if self._fence.hand_back_due(self._clock.now_s()):
            works.append(self._hand_back)
        if self._lease.may_reap and (Due.DEAD in found or number >= self._reap_at):
            works.append(lambda: self._reap(number))
        if number >= self._look_at:
            works.append(lambda: self._look(number))
        return works

    async def _see_to(self, works: Sequence[Callable[[], Awaitable[None]]]) -> None:
        try:
            for work in works:
                await work()
        except RedisError as error:
            log.debug("upkeep of %s: %s", self.model, error)
        finally:
            self._busy = False

    async def ask_who_leads(self) -> None:
        """Learn which generation reads, and see to what that changes.

        Raises:
            RedisError: nobody can be asked; what held before goes on.
        """
        able = self._fence.able
        leader = await scripts.lead(
            self._client,
            self.model,
            self._fence.number,
            self._lease.consumer,
            able=able,
            may_succeed=self._lease.may_reap and self._fence.may_succeed(self._clock.now_s()),
        )
        self._leader, self._was_able = leader.generation, able
        if self._fence.told(leader, self._clock.now_s()):
            self._led()

    async def _look(self, number: int) -> None:
        await self._clock.look(self._client)
        self._look_at = self._next(number, _CLOCK_EVERY)

    def _next(self, number: int, every: int) -> int:
        """The next round of those that have this turn; the models of a process have it in different rounds."""
        return number + every - (number + self._phase) % every

    async def _reap(self, number: int) -> None:
        while self._lease.may_reap and (room := min(_REAP_AT_ONCE, self._room())) > 0:
            try:
                reaped = await scripts.reap(self._client, self.model, self._lease.consumer, room)
            except RedisError:
                self._look_again()  # they may be ours, and the list of them lost on its way
                raise
            if reaped:
                log.warning("took %d jobs of %s over from routers that died", len(reaped), self.model)
                self._take_over(reaped)
            if len(reaped) < room:
                self._reap_at = self._next(number, _REAP_EVERY)
                return

    async def _read_cancels(self) -> None:
        after = self._cancels_after or str(self._clock.now_ms() - _LOOK_BACK_MS)
        async with translated(f"reading cancellations of {self.model}"):
            entries: Any = await execute(
                self._client, "XRANGE", keys_of(self.model).cancels, f"({after}", "+", "COUNT", 1000
            )
        if entries:
            self._cancels_after = str(entries[-1][0], "ascii")
            self._cancel([str(fields[1], "ascii", "replace") for _, fields in entries])
        else:
            self._cancels_after = after
