"""`headrace bench generate`, the system's part: jobs through Redis, router and replica, streamed and in one piece.

Our engine in process takes turns with it, on the same prompts, with the same settings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count, pairwise
from statistics import median
from typing import Any, Final

from headrace import AsyncClient, Job
from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_engine import engine_contestant, job_params, load_engine
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Say, Subject
from headrace_cluster.bench.generate_workload import Workload, mixed_workload
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.local import LocalService

__all__ = ["measure_system"]

_NAME: Final = "model"
_ENGINE: Final = "ours"
_TIMEOUT_S: Final = 300.0


def measure_system(subject: Subject, plan: GeneratePlan, report: GenerateReport, say: Say) -> None:
    """Fill in what is left of the engine's speed behind a queue.

    Args:
        subject: the model.
        plan: how much.
        report: is filled in.
        say: is told what is being done.
    """
    say("starting the service")
    with engine_contestant() as engine, LocalService(_config(subject, plan)) as service:
        load_engine(engine, _ENGINE, subject, plan)
        asyncio.run(_Bench(subject, plan, report, say, engine, service.url).run())


def _config(subject: Subject, plan: GeneratePlan) -> ServiceConfig:
    return load_config(
        {
            "models": {
                _NAME: {
                    "engine": {
                        "kind": "decoder",
                        "model": subject.path,
                        "precision": plan.precision,
                        "slots": plan.slots,
                    },
                    "pools": [{"replicas": 1, "cpus": subject.threads}],
                }
            }
        }
    )


class _Bench:
    def __init__(
        self, subject: Subject, plan: GeneratePlan, report: GenerateReport, say: Say, engine: Contestant, url: str
    ) -> None:
        self._subject = subject
        self._plan = plan
        self._report = report
        self._say = say
        self._engine = engine
        self._url = url
        self._numbers = count(1)
        self._gaps_ms: list[float] = []

    async def run(self) -> None:
        """Rounds of engine, pieces, and streams in turn; then lone jobs in turn with the engine's."""
        async with AsyncClient(self._url) as client:
            await self._whole(client, self._workload().first(4, longest_answer=4))
            rounds = [await self._round(client, number) for number in range(self._plan.system_rounds)]
            self._say("lone jobs")
            await self._lone(client)
            audit = await client.audit(_NAME)
        self._tell(rounds)
        self._report.lost, self._report.doubled = audit.lost, audit.doubled

    def _workload(self) -> Workload:
        whole = mixed_workload(self._subject.tokenizer, self._plan.prompts, number=next(self._numbers))
        return whole.first(self._plan.prompts, longest_answer=self._plan.longest_answer)

    async def _round(self, client: AsyncClient, number: int) -> tuple[float, float, float]:
        """Tokens a second in process, through the service, and streamed; in every second round the other way about,
        since a machine that others use as well gets slower and faster as it goes."""
        self._say(f"round {number + 1} of {self._plan.system_rounds}: through the service")
        if number % 2:
            streamed = await self._streamed(client, self._workload())
            whole = await self._whole(client, self._workload())
            return self._in_process(), whole, streamed
        engine = self._in_process()
        whole = await self._whole(client, self._workload())
        return engine, whole, await self._streamed(client, self._workload())

    def _in_process(self) -> float:
        workload = self._workload()
        done = self._ask("generate", prompts=workload.prompts, new_tokens=workload.new_tokens)
        return float(done["tokens"] / done["seconds"])

    def _ask(self, do: str, **given: Any) -> dict[str, Any]:
        return self._engine.ask(do, name=_ENGINE, **given)

    async def _whole(self, client: AsyncClient, workload: Workload) -> float:
        """Tokens a second of answers in one piece."""
        started, tokens = time.perf_counter(), 0
        async for result in client.map(_jobs(workload, stream=False), in_flight=len(workload.prompts), ordered=False):
            tokens += result.unwrap()["usage"]["completion_tokens"]
        return _rate(tokens, workload, started)

    async def _streamed(self, client: AsyncClient, workload: Workload) -> float:
        """Tokens a second of streams, all of them read as they come."""
        started = time.perf_counter()
        watched = await asyncio.gather(*(_watch(client, job) for job in _jobs(workload, stream=True)))
        rate = _rate(sum(tokens for tokens, _ in watched), workload, started)
        for _, times in watched:
            self._gaps_ms += [(later - earlier) * 1000 for earlier, later in pairwise(times)]
        return rate

    async def _lone(self, client: AsyncClient) -> None:
        """Milliseconds from a job's submission to its first text, and the same of the engine."""
        plan, ours, engine = self._plan, [], []
        for _ in range(plan.lone_jobs):
            workload = self._workload().first(1, longest_answer=plan.lone_tokens)
            started = time.perf_counter()
            _, times = await _watch(client, next(iter(_jobs(workload, stream=True))))
            ours.append((times[0] - started) * 1000)
            again = self._workload().first(1)
            engine += self._ask("first_tokens", prompts=again.prompts, new_tokens=plan.lone_tokens)["times_ms"]
        self._report.ttft_ms = median(ours)
        self._report.ttft_over_engine_ms = median(ours) - median(engine)

    def _tell(self, rounds: Sequence[tuple[float, float, float]]) -> None:
        report, gaps = self._report, sorted(self._gaps_ms)
        report.system_tokens_per_s = median(whole for _, whole, _ in rounds)
        report.system_ratio_to_engine = median(whole / engine for engine, whole, _ in rounds)
        report.streamed_tokens_per_s = median(streamed for _, _, streamed in rounds)
        report.stream_overhead_ratio = median(1 - streamed / whole for _, whole, streamed in rounds)
        report.chunk_gap_p50_ms, report.chunk_gap_p99_ms = median(gaps), gaps[int(len(gaps) * 0.99)]
        report.chunk_gap_p99_over_median = report.chunk_gap_p99_ms / report.chunk_gap_p50_ms


def _jobs(workload: Workload, *, stream: bool) -> list[Job]:
    items = zip(workload.prompts, workload.new_tokens, strict=True)
    return [Job(model=_NAME, input=prompt, params={**job_params(new), "stream": stream}) for prompt, new in items]


async def _watch(client: AsyncClient, job: Job) -> tuple[int, list[float]]:
    """How many tokens came, and when each chunk did."""
    tokens, times = 0, []
    async for chunk in client.stream(job, timeout_s=_TIMEOUT_S).chunks():
        times.append(time.perf_counter())
        tokens += len(chunk.tokens)
    return tokens, times


def _rate(tokens: int, workload: Workload, started: float) -> float:
    """Tokens a second until now.

    Raises:
        RuntimeError: some are missing.
    """
    if tokens != workload.tokens:
        raise RuntimeError(f"{tokens} new tokens came instead of {workload.tokens}")
    return tokens / (time.perf_counter() - started)
