"""`headrace bench e2e`: texts a second with a real model, through Redis and Ray Serve and back.

Against three others on the same cores and texts: the best that the same engine does in process, which is the
limit; fp32 in padded batches of 32, which is how it is usually begun; and `@serve.batch`, the nearest peer.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace import AsyncClient, Job, Result
from headrace.errors import HeadraceError
from headrace_cluster.bench.inprocess import Layout, Manner, embed_in_process, measure_in_process
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.bench.serve_batch import measure_serve_batch
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.corpus import heavy_tailed_texts
from headrace_cluster.local import LocalService
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["E2ePlan", "E2eReport", "run_e2e"]

_NAME: Final = "model"
_IN_FLIGHT: Final = 1024
_LONGEST: Final = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class E2ePlan:
    """How much to measure."""

    texts: int = 3_000
    rounds: int = 3
    padded_texts: int = 320
    """Of the fp32 padded loop, which is slow: this many from the middle of the texts."""
    serve_batch_texts: int = 1_000
    layouts: tuple[Layout, ...] = (Layout(2, 1), Layout(1, 2))
    """Of the others; the best of them counts."""
    manners: tuple[Manner, ...] = ("packed", "packed_sorted")
    """Of the limit, likewise."""

    @classmethod
    def quick(cls) -> E2ePlan:
        """A short look, with the layout and the manner that are usually the best."""
        return cls(
            texts=240,
            rounds=1,
            padded_texts=32,
            serve_batch_texts=64,
            layouts=(Layout(2, 1),),
            manners=("packed",),
        )


@dataclass(slots=True)
class E2eReport:
    """What came out."""

    texts: int = 0
    texts_per_s: float = 0.0
    layout: str = ""
    limit_texts_per_s: float = 0.0
    limit_layout: str = ""
    ratio_to_limit: float = 0.0
    fp32_padded_texts_per_s: float = 0.0
    speedup_over_fp32_padded: float = 0.0
    serve_batch_texts_per_s: float = 0.0
    serve_batch_layout: str = ""
    speedup_over_serve_batch: float = 0.0
    padding_avoided: float = 0.0
    cosine_mean: float = 0.0
    cosine_min: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    mean_batch_jobs: float = 0.0
    mean_batch_tokens: float = 0.0
    router_cpu_us_per_job: float = 0.0
    lost: int = 0
    doubled: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields, rounded to what they are good for."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def run_e2e(plan: E2ePlan, say: Say, *, model: str | None = None, texts_file: Path | None = None) -> E2eReport:
    """Measure.

    Args:
        plan: how much.
        say: is told what is being done.
        model: a folder, or a hub id; None takes all-MiniLM-L6-v2 from its package.
        texts_file: texts to use, one a line; None cuts a heavy-tailed mix from the language reference.

    Raises:
        HeadraceError: there are no texts in the file, or the model cannot be served.
    """
    path = model or str(packaged_encoder())
    lengths = load_tokenizer(find_source(path), _LONGEST).lengths
    texts = _lines(texts_file) if texts_file is not None else heavy_tailed_texts(plan.texts, lengths)
    bench = _Bench(path, texts, plan, say)
    bench.report.padding_avoided = padding_share(lengths(texts))
    return bench.run()


def _lines(file: Path) -> list[str]:
    """The lines of a file that are more than blanks.

    Raises:
        HeadraceError: there is none, or it is no text.
    """
    try:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise HeadraceError(f"{file}: byte {error.start} is not UTF-8") from None
    if not lines:
        raise HeadraceError(f"{file} holds no text")
    return lines


def padding_share(lengths: Sequence[int], *, batch: int = 32) -> float:
    """Which part of the tokens would be padding in batches of 32 in the order of arrival."""
    padded = sum(max(chunk) * len(chunk) for chunk in (lengths[n : n + batch] for n in range(0, len(lengths), batch)))
    return 1 - sum(lengths) / padded


class _Bench:
    """One run over one model and one list of texts."""

    def __init__(self, model: str, texts: list[str], plan: E2ePlan, say: Say) -> None:
        self._model = model
        self._texts = texts
        self._plan = plan
        self._say = say
        self.report = E2eReport(texts=len(texts))

    def run(self) -> E2eReport:
        """All of it: rounds of ours and the limits in turn, then the slow neighbours once each."""
        report = self.report
        self._say("starting the service")
        with LocalService(_config(self._model)) as service:
            rounds = [self._round(service, n) for n in range(self._plan.rounds)]
            self._say("@serve.batch")
            self._serve_batch()
        report.texts_per_s = statistics.median(ours for ours, _ in rounds)
        report.limit_texts_per_s = statistics.median(limit for _, limit in rounds)
        report.ratio_to_limit = statistics.median(ours / limit for ours, limit in rounds)
        self._say("fp32, padded")
        self._padded()
        report.speedup_over_fp32_padded = report.texts_per_s / report.fp32_padded_texts_per_s
        report.speedup_over_serve_batch = report.texts_per_s / report.serve_batch_texts_per_s
        return report

    def _round(self, service: LocalService, number: int) -> tuple[float, float]:
        """Ours, and the best of the engine in process."""
        self._say(f"round {number + 1} of {self._plan.rounds}: through the service")
        ours = self._ours(service, first=number == 0)
        limits = {}
        for layout in self._plan.layouts:
            for manner in self._plan.manners:
                self._say(f"round {number + 1} of {self._plan.rounds}: in process, {layout}, {manner}")
                limits[f"{layout} {manner}"] = measure_in_process(
                    self._model,
                    self._texts,
                    layout=layout,
                    precision="int8",
                    manner=manner,
                )
        best = max(limits, key=lambda name: limits[name])
        self.report.limit_layout = best
        return ours, limits[best]

    def _ours(self, service: LocalService, *, first: bool) -> float:
        before = service.counts()[_NAME]
        rate, results, times_ms = asyncio.run(_embed(service.url, self._texts))
        after = service.counts()[_NAME]
        report, batches = self.report, after["batches"] - before["batches"]
        jobs = after["answered"] - before["answered"]
        report.layout = "2x1"
        report.mean_batch_jobs = jobs / batches
        report.mean_batch_tokens = (after["tokens"] - before["tokens"]) / batches
        report.router_cpu_us_per_job = (after["process_cpu_s"] - before["process_cpu_s"]) / jobs * 1e6
        report.p50_ms = statistics.median(times_ms)
        report.p99_ms = sorted(times_ms)[int(len(times_ms) * 0.99)]
        if first:
            self._compare(results)
            audit = asyncio.run(_audit(service.url))
            report.lost, report.doubled = audit
        return rate

    def _compare(self, results: Sequence[Result]) -> None:
        """Agreement with the same model in fp32."""
        self._say("the same in fp32, to compare")
        truth = embed_in_process(self._model, self._texts, threads=2, precision="fp32")
        cosines = cosine(np.array(truth), np.array([result.unwrap().tolist() for result in results]))
        self.report.cosine_mean, self.report.cosine_min = float(cosines.mean()), float(cosines.min())

    def _serve_batch(self) -> None:
        texts = self._texts[: self._plan.serve_batch_texts]
        rates = {str(layout): measure_serve_batch(self._model, texts, layout=layout) for layout in self._plan.layouts}
        best = max(rates, key=lambda name: rates[name])
        self.report.serve_batch_layout, self.report.serve_batch_texts_per_s = best, rates[best]

    def _padded(self) -> None:
        middle, half = len(self._texts) // 2, self._plan.padded_texts // 2
        sample = self._texts[max(0, middle - half) : middle + half]
        self.report.fp32_padded_texts_per_s = max(
            measure_in_process(self._model, sample, layout=layout, precision="fp32", manner="padded")
            for layout in self._plan.layouts
        )


def cosine(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Cosine similarity of rows of [n, d] and [n, d]."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    similarities: NDArray[Any] = (one * other).sum(axis=1) / norms
    return similarities


def _config(model: str) -> ServiceConfig:
    return load_config(
        {
            "models": {
                _NAME: {
                    "engine": {"kind": "encoder", "model": model, "overlong": "truncate"},
                    "pools": [{"replicas": 2, "cpus": 1}],
                }
            }
        }
    )


async def _embed(url: str, texts: Sequence[str]) -> tuple[float, list[Result], list[float]]:
    """Texts a second, the results in order, and the milliseconds from submission to result of each."""
    handed: dict[str, float] = {}
    times_ms: list[float] = []

    def jobs() -> Any:
        for text in texts:
            job = Job(model=_NAME, input=text)
            handed[job.id] = time.perf_counter()
            yield job

    results: dict[str, Result] = {}
    async with AsyncClient(url) as client:
        await client.run(Job(model=_NAME, input=texts[0]), timeout_s=60)
        started = time.perf_counter()
        async for result in client.map(jobs(), in_flight=_IN_FLIGHT, ordered=False):
            times_ms.append((time.perf_counter() - handed[result.id]) * 1000)
            results[result.id] = result
        elapsed_s = time.perf_counter() - started
    return len(texts) / elapsed_s, [results[job_id] for job_id in handed], times_ms


async def _audit(url: str) -> tuple[int, int]:
    async with AsyncClient(url) as client:
        audit = await client.audit(_NAME)
    return audit.lost, audit.doubled
