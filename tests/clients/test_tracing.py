"""Traces: one for each job, across producer, router, replica and consumer; and none where nobody asked for one."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from headrace import AsyncClient, Job
from headrace.errors import ConfigError
from headrace.telemetry.tracing import NO_TRACER, is_sampled
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_workers.replicas.watch import ReplicaWatch
from headrace_workers.telemetry.observability import TracingConfig
from headrace_workers.telemetry.span_exporter import SpanTracer, make_tracer
from support.bad_days import GatedEngine
from support.routing import MODEL
from support.service import PlainService
from support.waiting import eventually

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = SAMPLED[:-1] + "0"


class Spans:
    """All that anybody records in a test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = SpanTracer(SimpleSpanProcessor(self.exporter), "headrace.test")

    def watched(self) -> dict[str, Any]:
        return {
            "watch": RouterWatch(MODEL, tracer=self.tracer),
            "replica_watch": ReplicaWatch("cpu", tracer=self.tracer),
        }

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    recorded = Spans()
    yield recorded
    recorded.tracer.close()


@pytest.fixture
def program(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Iterator[trace.Tracer]:
    """The producer's own tracing, as its program sets it up."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield provider.get_tracer("program")
    provider.shutdown()


async def test_one_job_is_one_trace(redis_url: str, spans: Spans, program: trace.Tracer) -> None:
    """From the program that submits it to the one that has its answer, a span for each stage, in their order."""
    async with PlainService(redis_url, MODEL, **spans.watched()), AsyncClient(redis_url) as client:
        with program.start_as_current_span("order"):
            result = await client.run(Job(model=MODEL, input="x"), timeout_s=10)
        await eventually(lambda: spans.named("headrace.answer"))

    [order] = spans.named("order")
    assert order.context is not None
    of_job = [span for span in spans.all() if span.context and span.context.trace_id == order.context.trace_id]
    stages = ["headrace.submit", "headrace.wait", "headrace.run", "headrace.answer", "headrace.receive"]
    assert {span.name for span in of_job} == {"order", *stages}
    [submit] = spans.named("headrace.submit")
    assert submit.context is not None
    for name in stages[1:]:
        [span] = spans.named(name)
        assert span.parent is not None
        assert span.parent.span_id == submit.context.span_id
        assert span.attributes is not None
        assert (span.attributes["headrace.model"], span.attributes["headrace.job_id"]) == (MODEL, result.id)
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    assert result.traceparent.split("-")[1] == f"{order.context.trace_id:032x}"


async def test_a_batch_names_its_jobs_and_they_name_it(redis_url: str, spans: Spans, program: trace.Tracer) -> None:
    """It has a trace of its own: its jobs are of many."""
    engine = GatedEngine()
    async with PlainService(redis_url, MODEL, engine, **spans.watched()), AsyncClient(redis_url) as client:
        receipts = []
        for number in range(12):
            with program.start_as_current_span(f"order {number}"):
                receipts.append(await client.submit(Job(model=MODEL, input=number)))
        engine.open()
        for receipt in receipts:
            await client.result(receipt, timeout_s=10)
        await eventually(lambda: len(spans.named("headrace.answer")) == 12)

    traces = {span.context.trace_id for span in spans.named("headrace.submit") if span.context}
    linked = [link.context.trace_id for batch in spans.named("headrace.batch") for link in batch.links]
    assert sorted(linked) == sorted(traces)
    batches = {batch.context.span_id for batch in spans.named("headrace.batch") if batch.context}
    assert len(batches) < 12
    for run in spans.named("headrace.run"):
        assert [link.context.span_id in batches for link in run.links] == [True]


async def test_who_has_no_sdk_passes_a_context_on(redis_url: str, spans: Spans) -> None:
    """The context of whoever called the program goes into the job, and comes back with its answer."""
    caller = SpanContext(int("ab" * 16, 16), int("cd" * 8, 16), is_remote=True, trace_flags=TraceFlags(1))
    async with PlainService(redis_url, MODEL, **spans.watched()), AsyncClient(redis_url) as client:
        with trace.use_span(NonRecordingSpan(caller)):
            result = await client.run(Job(model=MODEL, input="x"), timeout_s=10)
        await eventually(lambda: spans.named("headrace.answer"))

    assert result.traceparent == f"00-{'ab' * 16}-{'cd' * 8}-01"
    assert {span.name for span in spans.all()} == {
        "headrace.wait",
        "headrace.run",
        "headrace.batch",
        "headrace.answer",
    }


@pytest.mark.parametrize("context", ["", NOT_SAMPLED])
async def test_what_nobody_sampled_is_not_recorded(redis_url: str, spans: Spans, context: str) -> None:
    """Neither a job without a trace, nor one whose producer decided against it."""
    async with PlainService(redis_url, MODEL, **spans.watched()), AsyncClient(redis_url) as client:
        result = await client.run(Job(model=MODEL, input="x", traceparent=context), timeout_s=10)

    assert result.traceparent == context
    assert spans.all() == []


async def test_a_jobs_own_context_comes_first(redis_url: str, program: trace.Tracer) -> None:
    """Whoever hands a job of another on says whose it is."""
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as client:
        with program.start_as_current_span("mine"):
            result = await client.run(Job(model=MODEL, input="x", traceparent=SAMPLED), timeout_s=10)
        again = await client.submit(Job(model=MODEL, input="x", traceparent=SAMPLED, inbox="elsewhere", id="k"))
        [other] = [found async for found in client.results("elsewhere", model=MODEL, idle_s=1)]

    assert again.accepted
    assert result.traceparent == other.traceparent == SAMPLED


async def test_a_cancelled_job_has_its_context(redis_url: str) -> None:
    """Which the server itself writes."""
    async with PlainService(redis_url, MODEL, GatedEngine()) as service, AsyncClient(redis_url) as client:
        service.router.stop()
        receipt = await client.submit(Job(model=MODEL, input="x", traceparent=SAMPLED))
        await client.cancel(receipt)
        for replica in service.replicas.values():
            replica.engine.open()  # type: ignore[attr-defined]
        assert (await client.result(receipt, timeout_s=10)).traceparent == SAMPLED


def test_a_share_of_traces_is_the_same_everywhere(spans: Spans) -> None:
    """Routers and replicas choose by the trace's id, and about as many as they were told."""
    here, there = (SpanTracer(SimpleSpanProcessor(spans.exporter), name, sample_ratio=0.25) for name in "ab")
    contexts = [f"00-{n * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 128):032x}-{1:016x}-01" for n in range(1, 2001)]
    wanted = [here.wants(context) for context in contexts]
    assert wanted == [there.wants(context) for context in contexts]
    assert 400 < sum(wanted) < 600


@pytest.mark.parametrize(
    ("context", "sampled"),
    [
        (SAMPLED, True),
        (NOT_SAMPLED, False),
        (SAMPLED[:-1] + "3", True),
        ("-", False),
        ("", False),
        ("00-abc-01", False),
    ],
)
def test_sampled_is_what_the_flags_say(context: str, sampled: bool) -> None:
    """The lowest bit of them."""
    assert is_sampled(context) is sampled


def test_tracing_that_is_off_costs_nothing() -> None:
    """And the client does without OpenTelemetry where it is not installed."""
    assert make_tracer(TracingConfig(), "headrace.router") is NO_TRACER
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from headrace.telemetry.tracing import submitting\n"
        "with submitting(1) as traceparent: print(repr(traceparent))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (said.stdout.strip(), said.stderr) == ("''", "")


def test_tracing_without_its_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """That says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[tracing\]'"):
        make_tracer(TracingConfig(enabled=True), "headrace.router")


def test_spans_reach_a_collector() -> None:
    """By OTLP over HTTP, where the configuration says, at the end at the latest."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        tracer = make_tracer(TracingConfig(enabled=True, endpoint=endpoint), "headrace.router")
        tracer.record("headrace.wait", SAMPLED, start_ms=1000, end_ms=1500, attributes={"headrace.model": "m"})
        tracer.close()
        server.shutdown()
    [body] = received
    for word in (b"headrace.router", b"headrace.wait", bytes.fromhex(SAMPLED.split("-")[1])):
        assert word in body
