"""What the health route says."""

from __future__ import annotations

import json

import pytest

from headrace_cluster.router.health import health

SERVED = {"replicas": 2, "waiting": 5, "in_flight": 1, "pid": 4711}


def test_all_is_well() -> None:
    """The numbers that are anybody's business, and no others."""
    answer = health({"minilm": SERVED}, redis_answers=True)
    assert answer.status_code == 200
    assert json.loads(bytes(answer.body)) == {
        "ready": True,
        "lacking": [],
        "models": {"minilm": {"replicas": 2, "waiting": 5, "in_flight": 1}},
    }


@pytest.mark.parametrize(
    ("replicas", "redis_answers", "lacking"),
    [
        (0, True, ["no replica of minilm is ready"]),
        (2, False, ["Redis does not answer"]),
        (0, False, ["Redis does not answer", "no replica of minilm is ready"]),
    ],
)
def test_what_is_lacking_is_said(replicas: int, redis_answers: bool, lacking: list[str]) -> None:
    """With a status that a probe understands."""
    answer = health({"minilm": {**SERVED, "replicas": replicas}}, redis_answers=redis_answers)
    assert answer.status_code == 503
    assert json.loads(bytes(answer.body))["lacking"] == lacking
