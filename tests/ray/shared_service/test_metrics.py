"""What a scrape of a running service finds: all that is declared, with its labels."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from typing import Final

import pytest
import ray

from headrace import AsyncClient, Job
from headrace.telemetry.metric_names import METRICS, Kind, Metric
from support.waiting import eventually

pytestmark = pytest.mark.ray

_ELSEWHERE: Final = {
    "headrace_kv_pages": "a real language model (tests/cluster/test_metrics.py)",
    "headrace_replicas_wanted": "a pool that scales",
    "headrace_scaling_decisions_total": "a pool that scales",
}
"""What this service has no occasion for, and what it takes."""
_EXPORTED_S: Final = 60.0
"""Ray's processes hand their metrics over every ten seconds."""


def _scrape() -> dict[str, set[str]]:
    """The names that the node exports, each with the labels of its series."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as reply:
        text = reply.read().decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(ray_headrace_\w+)\{(.*)\} ", text, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def _series(metric: Metric) -> str:
    return metric.exported + ("_bucket" if metric.kind is Kind.HISTOGRAM else "")


async def test_every_metric_is_exported(client: AsyncClient) -> None:
    """Under its declared name, whether or not anything was counted; dashboards and alerts rely on it."""
    some = [Job(model=model, input=f"{n}") for n in range(20) for model in ("echo", "minilm")]
    for result in [result async for result in client.map(some)]:
        assert result.ok
    assert (await client.run(Job(model="words", input="go", params={"max_tokens": 4}), timeout_s=30)).ok
    wanted = {_series(metric): set(metric.labels) for name, metric in METRICS.items() if name not in _ELSEWHERE}

    async def missing() -> set[str]:
        found = await asyncio.to_thread(_scrape)
        return {name for name, labels in wanted.items() if not labels <= found.get(name, set())}

    async def complete() -> bool:
        return not await missing()

    try:
        await eventually(complete, within_s=_EXPORTED_S)
    except AssertionError:
        pytest.fail(f"not exported: {sorted(await missing())}")
