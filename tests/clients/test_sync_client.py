"""The synchronous client: from several threads, in a forked child, interrupted, closed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace import Client, Job, QueueFullError, RedisSetupError, ResultTimeoutError
from headrace.models.registry import Limits
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService
from support.leaks import holdings
from support.waiting import eventually_sync

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


class Answering:
    """A service on a thread of its own, answering every job with its input until it is told to hold."""

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self._url = url
        self._limits = limits
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="answering")
        self._ready = threading.Event()
        self._ended = asyncio.Event()

    def __enter__(self) -> Answering:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with HandService(self._url, limits=self._limits) as service:
            service.keep_answering()
            self._ready.set()
            await self._ended.wait()


@pytest.fixture
def answering(redis_url: str) -> Iterator[Answering]:
    """The model `by-hand`, answered on another thread."""
    with Answering(redis_url) as answering:
        yield answering


@pytest.fixture
async def silent(redis_url: str) -> AsyncIterator[HandService]:
    """The model `by-hand`, never answered."""
    async with HandService(redis_url) as service:
        yield service


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=n) for n in range(count)]


# -- plain forms of every call ----------------------------------------------------------------------------------------


def test_every_call_has_a_plain_form(answering: Answering, redis_url: str) -> None:
    """What `AsyncClient` awaits, `Client` returns."""
    with Client(redis_url) as client:
        client.ping()
        receipt = client.submit(Job(model=MODEL, input="a"))
        assert client.result(receipt, timeout_s=5).unwrap() == "a"
        assert len(client.submit_many(jobs(3))) == len(client.submit_patiently(jobs(3))) == 3
        assert client.run(Job(model=MODEL, input="b"), timeout_s=5).unwrap() == "b"
        assert client.status(receipt).state == "ok"
        assert client.models() == [MODEL]
        eventually_sync(lambda: client.audit(MODEL).ok == 8)
        assert receipt.inbox == client.inbox


def test_map_in_order_and_as_completed(answering: Answering, redis_url: str) -> None:
    """The window is the asynchronous client's; the iterable is taken from on the caller's thread."""
    threads = set()

    def source() -> Iterator[Job]:
        for job in jobs(300):
            threads.add(threading.current_thread())
            yield job

    with Client(redis_url) as client:
        assert [result.unwrap() for result in client.map(source(), in_flight=50)] == list(range(300))
        assert sorted(r.unwrap() for r in client.map(jobs(300), in_flight=50, ordered=False)) == list(range(300))
    assert threads == {threading.current_thread()}


def test_results_of_an_inbox(answering: Answering, redis_url: str) -> None:
    """A consumer in plain Python: read, remember the cursor, trim."""
    with Client(redis_url) as client:
        client.submit_many([Job(model=MODEL, input=n, inbox="orders") for n in range(5)])
        eventually_sync(lambda: client.audit(MODEL).ok == 5)
        results = list(client.results("orders", model=MODEL, idle_s=0.01))
        assert [result.unwrap() for result in results] == list(range(5))
        assert client.trim("orders", model=MODEL, through=results[1].cursor) == 2
        rest = client.results("orders", model=MODEL, after=results[0].cursor, idle_s=0.01)
        assert [result.unwrap() for result in rest] == [2, 3, 4]


def test_leaving_results_early(answering: Answering, redis_url: str) -> None:
    """A loop that is left closes the reading behind it."""
    with Client(redis_url) as client:
        client.submit_many([Job(model=MODEL, input=n, inbox="orders") for n in range(5)])
        for result in client.results("orders", model=MODEL):
            assert result.unwrap() == 0
            break
        client.ping()


def test_leaving_a_map_early(answering: Answering, redis_url: str) -> None:
    """The client goes on working."""
    with Client(redis_url) as client:
        for _ in client.map(jobs(100), in_flight=10):
            break
        assert client.run(Job(model=MODEL, input="next"), timeout_s=5).ok


def test_errors_come_out_as_they_are(silent: HandService, redis_url: str) -> None:
    """The same classes as the asynchronous client's, with the caller's own frames."""
    with Client(redis_url) as client:
        receipt = client.submit(jobs(1)[0])
        with pytest.raises(ResultTimeoutError):
            client.result(receipt, timeout_s=0.01)


def test_a_full_lane(redis_url: str) -> None:
    """Refusals carry their receipts here, too."""
    with Answering(redis_url, Limits(lane_capacity=1)), Client(redis_url) as client:
        with pytest.raises(QueueFullError) as caught:
            client.submit_many(jobs(100))
        assert len(caught.value.receipts) == 100
        assert [result.ok for result in client.map(jobs(10))] == [True] * 10


# -- threads ------------------------------------------------------------------------------------------------------


def test_from_several_threads(answering: Answering, redis_url: str) -> None:
    """One client serves all threads of a process; each gets its own answers."""

    def work(thread: int) -> list[str]:
        return [client.run(Job(model=MODEL, input=f"{thread}-{n}"), timeout_s=10).unwrap() for n in range(20)]

    with Client(redis_url) as client, ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(work, range(8)))

    assert outputs == [[f"{thread}-{n}" for n in range(20)] for thread in range(8)]


def test_one_connection_thread_however_many_callers(answering: Answering, redis_url: str) -> None:
    """Threads that make the first call at the same time share one loop."""
    with Client(redis_url) as client, ThreadPoolExecutor(8) as threads:
        inboxes = set(threads.map(lambda _: client.inbox, range(8)))
        assert sum(thread.name == "headrace-client" for thread in threading.enumerate()) == 1
    assert len(inboxes) == 1


def test_closing_wakes_the_other_threads(silent: HandService, redis_url: str) -> None:
    """A thread that waits for an answer is told, instead of being forgotten."""
    client = Client(redis_url)
    receipt = client.submit(jobs(1)[0])
    with ThreadPoolExecutor(3) as threads:
        waiting = threads.submit(client.result, receipt)
        mapping = threads.submit(list, client.map(jobs(3)))
        consuming = threads.submit(list, client.results("orders", model=MODEL))
        eventually_sync(lambda: client.audit(MODEL).live == 4)
        client.close()
        for future in (waiting, mapping, consuming):
            with pytest.raises(RuntimeError, match="closed"):
                future.result(timeout=5)


def test_nothing_stays_open(answering: Answering, redis_url: str) -> None:
    """No thread, no socket, no file."""
    before = holdings()
    for _ in range(3):
        with Client(redis_url) as client:
            assert len(list(client.map(jobs(50)))) == 50
            unfinished = client.results("orders", model=MODEL, idle_s=5)
            client.submit(Job(model=MODEL, input="x", inbox="orders"))
            next(unfinished)
        del unfinished
        gc.collect()

    after = holdings()
    assert {kind: after[kind] - before[kind] for kind in after} == {"tasks": set(), "threads": set(), "files": set()}


def test_a_url_that_is_none_starts_no_thread() -> None:
    """The error comes with the first call, every time, and leaves nothing behind."""
    client = Client("http://somewhere")
    for _ in range(3):
        with pytest.raises(RedisSetupError):
            client.ping()

    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-client"]
    client.close()


# -- processes ----------------------------------------------------------------------------------------------------

FORKING = """
import gc, os, sys
from headrace import Client, Job

client = Client(sys.argv[1])
assert client.run(Job(model="by-hand", input="before"), timeout_s=10).unwrap() == "before"
parent_inbox, children = client.inbox, []
for n in range(3):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for round in range(10):
                assert client.run(Job(model="by-hand", input=[n, round]), timeout_s=10).unwrap() == [n, round]
                client._runner.loop.call_soon_threadsafe(gc.collect)  # what was inherited is left alone
            assert client.inbox != parent_inbox
            client.close()
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
for round in range(10):
    assert client.run(Job(model="by-hand", input=round), timeout_s=10).unwrap() == round
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert client.run(Job(model="by-hand", input="after"), timeout_s=10).unwrap() == "after"
assert client.inbox == parent_inbox
client.close()
print(statuses)
"""


def run_program(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_forked_child_has_a_connection_and_an_inbox_of_its_own(answering: Answering, redis_url: str) -> None:
    """A pre-forking server may make its client before it forks: parent and children do not disturb each other."""
    program = run_program(FORKING, redis_url)

    assert program.stdout.strip() == "[0, 0, 0]", program.stderr


FORGETTING = """
import asyncio, gc, os, sys, time
import headrace.client
from headrace import Client, ClientSettings

client = Client(sys.argv[1], settings=ClientSettings(command_timeout_s=2))
client.ping()
if sys.argv[2] == "sabotage":
    headrace.client._open.clear()
pid = os.fork()
if pid == 0:
    client.close()
    del client

    async def collect():
        gc.collect()

    asyncio.run(collect())
    os._exit(0)
os.waitpid(pid, 0)
started = time.monotonic()
client.ping()
print("at once" if time.monotonic() - started < 1.5 else "deaf")
client.close()
"""


@pytest.mark.parametrize(("variant", "reply"), [("as it is", "at once"), ("sabotage", "deaf")])
def test_a_child_that_throws_the_client_away_does_not_disturb_its_parent(
    redis_url: str, variant: str, reply: str
) -> None:
    """Parent and child share the kernel's event queue: the child must not take the parent's sockets out of it.

    The sabotage lets the child collect what it inherited: the parent then waits for its socket's time-out.
    """
    program = run_program(FORGETTING, redis_url, variant)

    assert program.stdout.strip() == reply, program.stderr


INTERRUPTED = """
import os, signal, sys, threading, time
from headrace import Client, Job

with Client(sys.argv[1]) as client:
    receipt = client.submit(Job(model="by-hand", input="x", id="interrupted"))
    what = sys.argv[2]
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        if what == "result":
            client.result(receipt)
        elif what == "map":
            list(client.map([Job(model="by-hand", input=n) for n in range(10)]))
        else:
            list(client.results("orders", model="by-hand"))
    except KeyboardInterrupt:
        print("interrupted after", "no time" if time.monotonic() - started < 3 else "too long")
    client.ping()
    print(client.status(receipt).state)
"""


@pytest.mark.parametrize("call", ["result", "map", "results"])
def test_an_interrupt_ends_the_waiting_at_once_and_leaves_the_client_whole(
    silent: HandService, redis_url: str, call: str
) -> None:
    """Ctrl-C cancels what was waited for; the client can be used, and closes without a word."""
    program = run_program(INTERRUPTED, redis_url, call)

    assert program.stdout.split("\n")[:2] == ["interrupted after no time", "waiting"], program.stderr
    assert program.returncode == 0, program.stderr
    assert "never awaited" not in program.stderr
    assert "Traceback" not in program.stderr


def test_a_program_that_forgets_to_close_exits(silent: HandService, redis_url: str) -> None:
    """The client's thread keeps no interpreter alive."""
    program = run_program(
        "import sys; from headrace import Client; client = Client(sys.argv[1]); client.ping(); print('done')",
        redis_url,
    )

    assert (program.stdout.strip(), program.returncode) == ("done", 0)


def test_the_service_may_be_restarted_under_a_waiting_thread(own_server: EmbeddedServer) -> None:
    """The synchronous client inherits the reader that waits outages out."""
    with Client(own_server.url) as client, ThreadPoolExecutor(1) as threads:
        with Answering(own_server.url):
            client.run(jobs(1)[0], timeout_s=5)
        receipt = client.submit(jobs(1)[0])
        waiting = threads.submit(client.result, receipt, timeout_s=20)
        own_server.kill()
        own_server.start()
        with Answering(own_server.url):
            assert waiting.result(timeout=20).ok


def test_signals_reach_the_caller_s_thread(silent: HandService, redis_url: str) -> None:
    """Waiting for an answer does not hold up the process's signal handlers."""
    seen: list[float] = []
    former = signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    try:
        with Client(redis_url) as client:
            receipt = client.submit(jobs(1)[0])
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(ResultTimeoutError):
                client.result(receipt, timeout_s=1)
            waited_until = time.monotonic()
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen
    assert seen[0] < waited_until - 0.3
