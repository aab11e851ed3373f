"""The floor of `bench transport`: the least that jobs through Redis Streams can cost, written by hand.

Pipelined XADD, XREADGROUP COUNT 256, one script that acknowledges, deletes and answers 64 jobs, XREAD. There
is no Ray, no router, no job record, no check of anything, and a crash in the wrong place loses jobs: it is
what remains when everything headrace is for has been left out.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any, Final

import redis

__all__ = ["measure_floor"]

_FINISH: Final = """
for n = 1, #ARGV, 2 do
  redis.call('XACK', KEYS[1], 'g', ARGV[n])
  redis.call('XDEL', KEYS[1], ARGV[n])
  redis.call('XADD', KEYS[2], '*', 'p', ARGV[n + 1])
end
"""
_TIMEOUT_S: Final = 30.0


def measure_floor(url: str, *, jobs: int, payload_bytes: int) -> float:
    """Jobs a second from one producer through one worker process and back; the keys it uses are deleted."""
    client = _connect(url)
    client.delete("floor:q", "floor:r")
    client.xgroup_create("floor:q", "g", id="0", mkstream=True)
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(url, jobs + 1), daemon=True)
    worker.start()
    try:
        client.xadd("floor:q", {"p": b"warm"})  # the worker is up once it has answered this
        after = _wait(client, "0", 1)
        started = time.perf_counter()
        producer = threading.Thread(target=_produce, args=(url, jobs, payload_bytes))
        producer.start()
        _wait(client, after, jobs)
        elapsed_s = time.perf_counter() - started
        producer.join()
        worker.join(_TIMEOUT_S)
    finally:
        worker.kill()
        client.delete("floor:q", "floor:r")
        client.close()
    return jobs / elapsed_s


def _connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, protocol=2, socket_timeout=_TIMEOUT_S)


def _wait(client: redis.Redis, after: str, jobs: int) -> str:
    """Read that many answers; returns the last one's id."""
    received = 0
    while received < jobs:
        reply: Any = client.xread({"floor:r": after}, count=512, block=10_000)
        if not reply:
            raise TimeoutError("the floor's worker does not answer")
        entries = reply[0][1]
        received, after = received + len(entries), entries[-1][0]
    return after


def _produce(url: str, jobs: int, payload_bytes: int) -> None:
    client, payload = _connect(url), b"x" * payload_bytes
    for start in range(0, jobs, 256):
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(256, jobs - start)):
            pipeline.xadd("floor:q", {"p": payload})
        pipeline.execute()
    client.close()


def _work(url: str, jobs: int) -> None:
    client = _connect(url)
    finish, done = client.register_script(_FINISH), 0
    while done < jobs:
        reply: Any = client.xreadgroup("g", "w", {"floor:q": ">"}, count=256, block=10_000)
        for _stream, entries in reply:
            for start in range(0, len(entries), 64):
                chunk = entries[start : start + 64]
                finish(keys=["floor:q", "floor:r"], args=[part for i, f in chunk for part in (i, f[b"p"])])
                done += len(chunk)
    client.close()
