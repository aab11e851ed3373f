"""The collector of a router process: what stands is left alone, what comes is looked at rarely."""

from __future__ import annotations

import gc

from headrace_cluster.router.collector import settle


def test_it_looks_rarely_and_not_at_what_stands() -> None:
    before = gc.get_threshold()
    undo = settle()
    try:
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_freeze_count() > 1000
    finally:
        undo()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
