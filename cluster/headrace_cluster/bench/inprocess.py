"""The same model without a queue: what the cores can do when nothing else is asked of them.

Each measurement runs in processes of its own, started together: one with all threads, or one for each core.
Tokenizing counts, loading does not.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["Layout", "embed_in_process", "measure_in_process"]

_BATCH_JOBS: Final = 256
_PADDED_BATCH: Final = 32
_TIMEOUT_S: Final = 600.0

Manner = Literal["packed", "packed_sorted", "padded"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How cores are divided."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.threads}"


def measure_in_process(
    model: str, texts: Sequence[str], *, layout: Layout, precision: str, manner: Manner = "packed"
) -> float:
    """Texts a second of one layout.

    Args:
        model: a folder, an artifact or a hub id.
        texts: all of them; each process takes its share of every length.
        layout: processes and threads.
        precision: what the engine computes in; `stored` for an artifact as it is.
        manner: all tokens in a row, as they come or sorted by length, or padded batches of 32 as they come.
    """
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(layout.processes + 1), context.Queue()
    workers = [
        context.Process(
            target=_work,
            args=(model, list(texts[n :: layout.processes]), layout.threads, precision, manner, barrier, done),
            daemon=True,
        )
        for n in range(layout.processes)
    ]
    for worker in workers:
        worker.start()
    try:
        barrier.wait(_TIMEOUT_S)
        seconds: float = max(done.get(timeout=_TIMEOUT_S) for _ in workers)
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
    return len(texts) / seconds


def _work(
    model: str,
    texts: list[str],
    threads: int,
    precision: str,
    manner: Manner,
    barrier: Barrier,
    done: Queue[float],
) -> None:
    runner = _Runner(model, threads, precision, manner)
    runner.run(texts[:64])
    barrier.wait(_TIMEOUT_S)
    started = time.perf_counter()
    runner.run(texts)
    done.put(time.perf_counter() - started)


class _Runner:
    """One model, fed in one manner."""

    def __init__(self, model: str, threads: int, precision: str, manner: Manner) -> None:
        from headrace_workers import node

        node.prepare_process(threads)
        self._sorted = manner == "packed_sorted"
        self._answer = _padded(model, precision) if manner == "padded" else _packed(model, precision)
        self._size = _PADDED_BATCH if manner == "padded" else _BATCH_JOBS

    def run(self, texts: list[str]) -> list[Any]:
        if self._sorted:
            texts = sorted(texts, key=len)
        answers: list[Any] = []
        for start in range(0, len(texts), self._size):
            answers += self._answer(texts[start : start + self._size])
        return answers


def _packed(model: str, precision: str) -> Callable[[list[str]], list[Any]]:
    if precision == "stored":
        return _as_stored(model)
    from headrace_workers.engines.encoder import EncoderEngine

    engine = EncoderEngine(model, precision=precision, overlong="truncate")  # type: ignore[arg-type]
    return lambda texts: engine.run(engine.prepare([(text, {}) for text in texts]))  # type: ignore[arg-type]


def _as_stored(artifact: str) -> Callable[[list[str]], list[Any]]:
    from headrace_workers.compression.evaluation.speed import engine_contestant

    engine = engine_contestant(artifact)
    return lambda texts: list(engine.run(engine.prepare(texts)))  # type: ignore[call-overload]


def _padded(model: str, precision: str) -> Callable[[list[str]], list[Any]]:
    from headrace_cluster.bench.padded import PaddedModel

    return PaddedModel(model, precision=precision)  # type: ignore[arg-type]


def embed_in_process(model: str, texts: Sequence[str], *, threads: int, precision: str) -> list[list[float]]:
    """The embeddings themselves, computed in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_embed, (model, list(texts), threads, precision))


def _embed(model: str, texts: list[str], threads: int, precision: str) -> list[list[float]]:
    return [answer.tolist() for answer in _Runner(model, threads, precision, "packed").run(texts)]
