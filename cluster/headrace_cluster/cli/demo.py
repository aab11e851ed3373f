"""`headrace demo`: the main job, for real, on this machine, in under two minutes."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from headrace.cli.options import AsJson
from headrace.cli.output import CommandError, Exit, Output
from headrace_cluster.cli.demo_chat import CHAT_MODEL, chat, chat_config
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.local import LocalService

__all__ = ["demo"]

_MODEL: Final = "minilm"
_QUERIES: Final = (
    "How do I write a loop that counts?",
    "What happens when two modules import each other?",
    "Comparing objects for equality",
)
_Texts = Annotated[int, typer.Option("--texts", min=100, max=3_000, help="How many texts to embed.")]
_Name = Annotated[str | None, typer.Option("--model", help="A folder or a hub id; else the package all-MiniLM-L6-v2.")]


def demo(*, texts: _Texts = 2_400, model: _Name = None, as_json: AsJson = False) -> int:
    """Quantize a model, serve it, embed real texts through `headrace batch`, and check the answers.

    Then a language model answers a few prompts at once, streamed. Everything is real: a Redis-compatible server,
    Ray Serve with routers and replicas, int8 kernels.
    """
    output = Output(as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        report = _run(Path(folder), texts, model, output)
    output.emit(report)
    output.show(*_summary(report))
    return Exit.DONE if _healthy(report) else Exit.FAILED


def _healthy(report: dict[str, Any]) -> bool:
    """Whether every job of both models was answered once, and the embeddings are those of fp32."""
    astray = sum(report[name] for name in ("lost", "doubled", "prompts_lost", "prompts_doubled"))
    ended = [(report["finished"], report["submitted"]), (report["prompts_answered"], report["prompts"])]
    return astray == 0 and all(done == asked for done, asked in ended) and bool(report["cosine_mean"] >= 0.99)


def _run(folder: Path, count: int, model: str | None, output: Output) -> dict[str, Any]:
    """The demo, with everything it writes in `folder`."""
    from headrace_cluster.bench.models import packaged_encoder
    from headrace_cluster.corpus import reference_texts
    from headrace_cluster.local import LocalService
    from headrace_workers.compression.build import build_artifact

    texts, source = reference_texts(count), model or str(packaged_encoder())
    with steps(as_json=output.as_json) as say:
        say("quantizing the model to int8")
        artifact = folder / "artifact"
        metrics = build_artifact(source, artifact, task="embedding").manifest.metrics
        say("starting a server, Ray, routers and replicas of two models")
        service = LocalService(_config(artifact))
        service.__enter__()
    try:
        output.show(f"embedding {count:,} texts from Python's language reference through `headrace batch`")
        report = _embed(service, folder, texts, output)
        with steps(as_json=output.as_json) as say:
            say("the same texts in fp32, to compare")
            report |= _compare(source, folder, texts)
            report["neighbours"] = asyncio.run(_neighbours(service.url, folder, texts))
        report |= chat(service, output)
    finally:
        service.__exit__(None, None, None)
    return report | {"artifact": metrics}


def _config(artifact: Path) -> Any:
    from headrace_cluster.config.settings import load_config

    return load_config(
        {
            "models": {
                _MODEL: {
                    "engine": {"kind": "encoder", "model": str(artifact), "overlong": "truncate"},
                    "pools": [{"replicas": 2}],
                },
                CHAT_MODEL: chat_config(),
            }
        }
    )


def _embed(service: LocalService, folder: Path, texts: Sequence[str], output: Output) -> dict[str, Any]:
    """Run the batch, and see what the router and the audit say of it."""
    from headrace.cli.batch import batch

    lines = (json.dumps({"custom_id": str(n), "input": text}) for n, text in enumerate(texts))
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    started = time.perf_counter()
    status = batch(
        _MODEL,
        folder / "texts.jsonl",
        output_path=folder / "vectors.jsonl",
        redis_url=service.url,
        as_json=output.as_json,
    )
    elapsed_s = time.perf_counter() - started
    if status != Exit.DONE:
        raise CommandError("some texts failed", code="demo_failed", hint="see above", status=Exit.FAILED)
    audit, counts = asyncio.run(_audit(service.url)), service.counts()[_MODEL]
    return {
        "texts": len(texts),
        "texts_per_s": round(len(texts) / elapsed_s, 1),
        "submitted": audit.submitted,
        "finished": audit.finished,
        "lost": audit.lost,
        "doubled": audit.doubled,
        "batches": counts["batches"],
        "mean_batch_jobs": round(counts["dispatched"] / counts["batches"], 1),
        "mean_batch_tokens": round(counts["tokens"] / counts["batches"]),
    }


async def _audit(url: str) -> Any:
    from headrace import AsyncClient

    async with AsyncClient(url) as client:
        return await client.audit(_MODEL)


def _compare(model: str, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Agreement with fp32, and what padding would have cost."""
    import numpy as np

    from headrace_cluster.bench.e2e import cosine, padding_share
    from headrace_cluster.bench.inprocess import embed_in_process

    vectors, tokens = _vectors(folder)
    truth = embed_in_process(model, texts, threads=2, precision="fp32")
    agreement = cosine(np.array(truth), vectors)
    return {
        "cosine_mean": round(float(agreement.mean()), 5),
        "cosine_min": round(float(agreement.min()), 5),
        "padding_avoided": round(padding_share(tokens), 3),
    }


def _vectors(folder: Path) -> tuple[Any, list[int]]:
    """What `headrace batch` wrote, in the order of the texts: embeddings, and tokens of each."""
    import numpy as np

    lines = [json.loads(line) for line in (folder / "vectors.jsonl").read_text("utf-8").splitlines()]
    lines.sort(key=lambda line: int(line["custom_id"]))
    return np.array([line["output"]["values"] for line in lines]), [line["input_tokens"] for line in lines]


async def _neighbours(url: str, folder: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """For each example sentence, the text that is nearest to it."""
    import numpy as np

    from headrace import AsyncClient, Job

    vectors, _ = _vectors(folder)
    found = []
    async with AsyncClient(url) as client:
        for query in _QUERIES:
            result = await client.run(Job(model=_MODEL, input=query), timeout_s=30)
            similarities = vectors @ np.array(result.unwrap().tolist())
            best = int(similarities.argmax())
            found.append({"query": query, "nearest": texts[best], "cosine": round(float(similarities[best]), 3)})
    return found


def _lost_and_doubled(report: dict[str, Any]) -> str:
    """Of both models' jobs together."""
    return f"{report['lost'] + report['prompts_lost']}, {report['doubled'] + report['prompts_doubled']}"


def _summary(report: dict[str, Any]) -> list[Any]:
    """What a person is shown at the end."""
    figures = Table("figure", "value", title="headrace demo")
    for name, value in (
        ("texts embedded", f"{report['texts']:,}"),
        ("throughput", f"{report['texts_per_s']:,.0f} texts/s"),
        ("batches", f"{report['batches']:,}, of {report['mean_batch_jobs']:.0f} texts on average"),
        ("padding avoided", f"{report['padding_avoided']:.0%} of what batches of 32 would have computed"),
        ("agreement with fp32", f"cosine {report['cosine_mean']:.4f} on average, {report['cosine_min']:.4f} at worst"),
        ("audit", f"submitted {report['submitted']:,} = finished {report['finished']:,}"),
        ("prompts answered", f"{report['prompts_answered']} of {report['prompts']}, in {report['chat_s']:.1f} s"),
        ("lost, doubled", _lost_and_doubled(report)),
    ):
        figures.add_row(name, value)
    nearest = Table("sentence", "nearest of the texts", "cosine")
    for row in report["neighbours"]:
        nearest.add_row(row["query"], row["nearest"][:160], f"{row['cosine']:.2f}")
    return [figures, nearest]
