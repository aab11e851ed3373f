"""taskiq: its Redis Streams broker with its Redis result backend, one worker process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from worker_process import running_worker

__all__ = ["broker", "echo"]

URL = os.environ.get("PEER_URL", "")
broker = RedisStreamBroker(URL or "redis://localhost").with_result_backend(
    RedisAsyncResultBackend(URL or "redis://localhost", result_ex_time=3600)
)


@broker.task(task_name="echo")
async def echo(payload: str) -> str:
    return payload


async def run(jobs: int, payload_bytes: int) -> float:
    await broker.startup()
    payload = "x" * payload_bytes
    for _ in range(10):
        await (await echo.kiq(payload)).wait_result(timeout=60, check_interval=0.02)
    started = time.perf_counter()
    tasks = [await echo.kiq(payload) for _ in range(jobs)]
    for task in tasks:
        await task.wait_result(timeout=300, check_interval=0.02)
    rate = jobs / (time.perf_counter() - started)
    await broker.shutdown()
    return rate


def main(url: str, jobs: int, payload_bytes: int) -> None:
    with running_worker(url, "taskiq", "worker", "--workers", "1", "--log-level", "ERROR", "taskiq_peer:broker"):
        print(json.dumps({"jobs_per_s": asyncio.run(run(jobs, payload_bytes))}))


if __name__ == "__main__":
    if not URL:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PEER_URL": sys.argv[1]})
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
