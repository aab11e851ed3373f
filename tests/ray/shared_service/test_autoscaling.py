"""A pool that follows its work: no replica, one, more, and none again; Serve's controller does as it is told."""

from __future__ import annotations

import pytest
from ray import serve

from headrace import Client, Job
from headrace_cluster.local import APP, LocalService
from support.waiting import eventually_sync

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]  # the first to need the service waits until it runs

_STARTED_S = 120.0
"""A replica is a process that must start, on whatever machine this is."""


def replicas() -> int:
    """Those that run, start or stop, as Serve says."""
    return sum(serve.status().applications[APP].deployments["rests@cpu"].replica_states.values())


def test_a_pool_follows_its_work(service: LocalService) -> None:
    """The service was ready without it. What is submitted while there is no replica waits, and is answered."""
    eventually_sync(lambda: replicas() == 0, within_s=_STARTED_S)
    assert service.counts()["rests"]["replicas"] == 0

    with Client(service.url) as client:
        first = client.run(Job(model="rests", input="sleep:0"), timeout_s=_STARTED_S)
        assert isinstance(first.unwrap(), int)

        burst = client.submit_many([Job(model="rests", input="sleep:0.2") for _ in range(60)])
        eventually_sync(lambda: replicas() == 2, within_s=_STARTED_S)
        results = [client.result(receipt, timeout_s=_STARTED_S) for receipt in burst]
        assert all(isinstance(result.unwrap(), int) for result in results)

        eventually_sync(lambda: replicas() == 0, within_s=_STARTED_S)
        again = client.run(Job(model="rests", input="sleep:0"), timeout_s=_STARTED_S)
        assert isinstance(again.unwrap(), int)
        audit = client.audit("rests")
        assert (audit.submitted, audit.ok, audit.live) == (62, 62, 0)
