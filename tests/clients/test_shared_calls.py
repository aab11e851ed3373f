"""Calls that tasks make in one turn of the event loop go to the server as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from headrace.jobs.shared_calls import SharedCalls
from support.waiting import eventually


class Server:
    """Answers each item with its square, when it may."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.shared = SharedCalls(self.call, most=4)

    async def call(self, kind: str, items: Sequence[int]) -> list[int]:
        self.calls.append((kind, list(items)))
        await self.may.wait()
        if 0 in items:
            raise ConnectionError("no server")
        return [item * item for item in items]

    def hand_over(self, *items: int, kind: str = "a") -> asyncio.Task[Sequence[int]]:
        return asyncio.create_task(self.shared.outcomes(kind, items))


async def test_tasks_share_a_call_and_each_gets_its_own_outcomes() -> None:
    server = Server()
    tasks = [server.hand_over(1), server.hand_over(2, 3), server.hand_over(4)]

    assert [await task for task in tasks] == [[1], [4, 9], [16]]
    assert server.calls == [("a", [1, 2, 3, 4])]


async def test_what_differs_in_kind_or_is_too_much_goes_by_itself() -> None:
    server = Server()
    tasks = [server.hand_over(1, 2), server.hand_over(3, 4, 5), server.hand_over(6, kind="b"), server.hand_over(7)]

    assert [await task for task in tasks] == [[1, 4], [9, 16, 25], [36], [49]]
    assert sorted(server.calls) == [("a", [1, 2]), ("a", [3, 4, 5, 7]), ("b", [6])]


async def test_more_than_a_call_takes_is_still_one_of_its_caller() -> None:
    """Who has more at hand cuts it himself."""
    server = Server()
    assert await server.hand_over(1, 2, 3, 4, 5) == [1, 4, 9, 16, 25]


async def test_what_comes_while_a_call_is_under_way_makes_another() -> None:
    server = Server()
    server.may.clear()
    first = server.hand_over(1)
    await eventually(lambda: len(server.calls) == 1)
    second = server.hand_over(2)
    await eventually(lambda: len(server.calls) == 2)
    server.may.set()

    assert [await first, await second] == [[1], [4]]


async def test_an_error_is_everybody_s() -> None:
    server = Server()
    outcomes = await asyncio.gather(server.hand_over(0), server.hand_over(1), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError, ConnectionError]


@pytest.mark.parametrize("turns", range(4))
async def test_who_is_cancelled_takes_nothing_from_the_others(turns: int) -> None:
    server = Server()
    leaving, staying = server.hand_over(1), server.hand_over(2)
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()

    assert await staying == [4]
    [outcome] = await asyncio.gather(leaving, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError) or outcome == [1]


@pytest.mark.parametrize("turns", range(1, 4))
async def test_the_last_one_ends_the_call(turns: int) -> None:
    """And whoever comes next makes one that is not cancelled, though it be of the same kind."""
    server = Server()
    server.may.clear()
    tasks = [server.hand_over(1), server.hand_over(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    server.may.set()
    later = server.hand_over(3)

    assert await later == [9]
    assert all(task.cancelled() for task in tasks)
