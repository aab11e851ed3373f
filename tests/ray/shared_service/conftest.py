"""One real service for all tests in here: Ray, Serve, a router and replicas in actors, and a real model."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace import AsyncClient
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import LocalService

_SOONER: Final = {"RAY_metrics_report_interval_ms": "2000", "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}
"""Metrics go out every two seconds, not every ten; and a replica that cannot start is tried once, not three times."""


@pytest.fixture(scope="package")
def service() -> Iterator[LocalService]:
    """Hosts `echo` twice, `hot` in two shards, `minilm` in int8, `fragile`, which does what its jobs ask for, `words`,
    which generates them, twice, and `rests`, which does as `fragile` and has no replica until a job comes.

    Of the four cores that it claims it leaves a fifth of one to what a test deploys beside it.
    """
    config = load_config(
        {
            "models": {
                "echo": {"engine": {"kind": "echo"}, "pools": [{"replicas": 2, "cpus": 0.2}]},
                "words": {
                    "engine": {
                        "kind": "custom",
                        "target": "support.decoders:FakeDecoder",
                        "options": {"slots": 16, "step_s": 0.01},
                        "slots": 16,
                    },
                    "pools": [{"replicas": 2, "cpus": 0.1}],
                },
                "hot": {"engine": {"kind": "echo"}, "shards": 2, "pools": [{"cpus": 0.1}]},
                "rests": {
                    "engine": {"kind": "custom", "target": "support.engines:FragileEngine"},
                    "pools": [{"cpus": 0.05, "min_replicas": 0, "max_replicas": 2}],
                    "batching": {"max_jobs": 4},
                    "scaling": {"drain_s": 1, "idle_s": 1, "cool_down_s": 1},
                },
                "minilm": {"engine": {"kind": "encoder", "model": str(packaged_encoder())}},
                "fragile": {
                    "engine": {"kind": "custom", "target": "support.engines:FragileEngine"},
                    "pools": [{"name": "one", "cpus": 0.5}, {"name": "two", "cpus": 0.5}],
                    "batching": {"max_jobs": 4},
                    "call_timeout_s": 5,
                },
            }
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)  # actors find `support` too
        for name, value in _SOONER.items():
            patch.setenv(name, value)
        with LocalService(config, fsync="always") as running:
            yield running


@pytest.fixture
async def client(service: LocalService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url) as connected:
        yield connected
