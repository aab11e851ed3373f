"""arq: one worker process, as many jobs at a time as helps it, results kept in Redis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from arq import create_pool
from arq.connections import RedisSettings
from worker_process import running_worker

__all__ = ["WorkerSettings", "echo"]


def _settings(url: str) -> RedisSettings:
    return RedisSettings.from_dsn(url or "redis://localhost")


async def echo(_context: dict[str, object], payload: str) -> str:
    return payload


class WorkerSettings:
    functions = (echo,)
    redis_settings = _settings(os.environ.get("PEER_URL", ""))
    max_jobs = 100
    poll_delay = 0.05


async def run(url: str, jobs: int, payload_bytes: int) -> float:
    pool = await create_pool(_settings(url))
    payload = "x" * payload_bytes
    warm = [await pool.enqueue_job("echo", payload) for _ in range(10)]
    for job in warm:
        assert job is not None
        await job.result(timeout=60, poll_delay=0.05)
    started = time.perf_counter()
    handed = await asyncio.gather(*(pool.enqueue_job("echo", payload) for _ in range(jobs)))
    for job in handed:
        assert job is not None
        await job.result(timeout=300, poll_delay=0.05)
    rate = jobs / (time.perf_counter() - started)
    await pool.aclose()
    return rate


def main(url: str, jobs: int, payload_bytes: int) -> None:
    with running_worker(url, "arq", "arq_peer.WorkerSettings"):
        print(json.dumps({"jobs_per_s": asyncio.run(run(url, jobs, payload_bytes))}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
