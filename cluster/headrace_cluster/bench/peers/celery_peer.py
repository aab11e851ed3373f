"""Celery: Redis as broker and as result backend, a prefork worker with a process for each core."""

from __future__ import annotations

import json
import os
import sys
import time

from celery import Celery
from worker_process import running_worker

__all__ = ["app", "echo"]

URL = os.environ.get("PEER_URL", "")
app = Celery("celery_peer", broker=URL, backend=URL)
app.conf.update(
    task_serializer="json", result_serializer="json", accept_content=["json"], worker_send_task_events=False
)


@app.task(name="echo")
def echo(payload: str) -> str:
    return payload


def main(url: str, jobs: int, payload_bytes: int) -> None:
    with running_worker(url, "celery", "-A", "celery_peer", "worker", "--loglevel=ERROR", "--without-gossip"):
        payload = "x" * payload_bytes
        for _ in range(10):
            echo.delay(payload).get(timeout=60)
        started = time.perf_counter()
        results = [echo.delay(payload) for _ in range(jobs)]
        for result in results:
            result.get(timeout=300)
        print(json.dumps({"jobs_per_s": jobs / (time.perf_counter() - started)}))


if __name__ == "__main__":
    if not URL:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PEER_URL": sys.argv[1]})
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
