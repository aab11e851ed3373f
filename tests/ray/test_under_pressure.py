"""A service with less than it needs: a model that takes its faster variant, and thirty models on two hosts."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from headrace import Client, Job
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import APP, LocalService
from headrace_cluster.pools.replicas import replicas_of
from support.tiny_model import WORDS
from support.variants import FAST, FULL, two_variants
from support.waiting import eventually_sync

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]

MODEL_BYTES, ROOM = 1 << 20, 6
"""What each of the models says it takes, and for how many of them a host has memory."""
MANY = [f"m{number:02}" for number in range(30)]
TEXT = " ".join(random.Random(0).choices(WORDS, k=60))
WITHIN_S = 120.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """`adapts` has one replica and two variants; `m00` and on share two hosts."""
    artifact = two_variants(tmp_path_factory.mktemp("v"), hidden_size=256, num_hidden_layers=4, intermediate_size=1024)
    adapts: dict[str, Any] = {
        "engine": {"model": str(artifact.path)},
        "pools": [{"cpus": 0.2}],
        "batching": {"max_jobs": 1},
        "scaling": {"drain_s": 0.5},
        "adaptive": {"step_after_s": 1, "back_after_s": 1},
    }
    config = load_config(
        {
            "models": {"adapts": adapts} | {name: _marked(name) for name in MANY},
            "shared_pools": {"hosts": {"replicas": 2, "cpus": 0.2, "memory_bytes": ROOM * MODEL_BYTES}},
            "router": {"cpus": 0.2},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        with LocalService(config, fsync="always") as running:
            yield running


def _marked(name: str) -> dict[str, Any]:
    options = {"name": name, "size": MODEL_BYTES}
    engine = {"kind": "custom", "target": "support.hosting:MarkedEngine", "options": options}
    return {"engine": engine, "pools": [{"shared": "hosts"}]}


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    with Client(service.url) as connected:
        yield connected


def test_under_overload_the_faster_variant_answers_and_then_the_better_one_again(client: Client) -> None:
    """Each answer names its variant; none is lost when a replica changes it."""
    job = Job(model="adapts", input=TEXT)
    assert client.run(job, timeout_s=WITHIN_S).variant == FULL

    eventually_sync(lambda: FAST in _wave(client), within_s=WITHIN_S)
    eventually_sync(
        lambda: client.run(Job(model="adapts", input=TEXT), timeout_s=WITHIN_S).variant == FULL, within_s=WITHIN_S
    )
    audit = client.audit("adapts")
    assert (audit.ok, audit.live, audit.lost, audit.doubled) == (audit.submitted, 0, 0, 0)


def _wave(client: Client) -> list[str | None]:
    """The variants that answer more jobs at once than a replica does in its time."""
    receipts = client.submit_many([Job(model="adapts", input=TEXT) for _ in range(1000)])
    results = [client.result(receipt, timeout_s=WITHIN_S) for receipt in receipts]
    assert {len(result.unwrap().data) for result in results} == {4 * 256}
    return [result.variant for result in results]


def test_thirty_models_share_two_hosts(client: Client) -> None:
    """Some are asked for often, most now and then: each job is answered by its own model, whoever had to go for it."""
    weights = [1 / (rank + 1) for rank in range(len(MANY))]
    names = MANY + random.Random(1).choices(MANY, weights, k=1500)
    jobs = [Job(model=name, input=f"{name} {number}") for number, name in enumerate(names)]
    outputs = [result.unwrap() for result in client.map(jobs, in_flight=200)]
    assert outputs == [f"{job.input} by {job.model}" for job in jobs]

    hosts = _hosts()
    assert len(hosts) == 2
    for host in hosts:
        assert 0 < len(host["models"]) <= ROOM
        assert host["used_bytes"] <= host["memory_bytes"] == ROOM * MODEL_BYTES
        assert host["loads"] > ROOM
        assert host["evictions"] == host["loads"] - len(host["models"])
        assert host["hits"] > 0
    for name in MANY:
        audit = client.audit(name)
        assert (audit.ok, audit.live, audit.lost, audit.doubled) == (audit.submitted, 0, 0, 0)


def _hosts() -> list[dict[str, Any]]:
    """What each host says of itself, called as a router calls it: by name."""
    told = serve.get_deployment_handle("@hosts", APP).options(method_name="info")
    names: list[frozenset[str]] = []
    replicas_of(APP, "@hosts").listen(names.append)
    eventually_sync(lambda: len(names[-1]) == 2, within_s=WITHIN_S)
    return [told.remote(name).result(timeout_s=WITHIN_S) for name in sorted(names[-1])]
