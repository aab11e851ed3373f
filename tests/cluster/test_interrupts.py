"""Interrupts while processes are being started: none is forgotten, and none is left half started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time

import pytest
import ray

from headrace_cluster.interrupts import interrupts_wait, sigterm_interrupts
from headrace_cluster.local_ray import local_ray


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    """However many come."""
    steps = []

    def interrupted_thrice() -> None:
        with interrupts_wait():
            for _ in range(3):
                signal.raise_signal(number)
                steps.append("in it")
        steps.append("after it")

    with sigterm_interrupts(), pytest.raises(KeyboardInterrupt):
        interrupted_thrice()
    assert steps == ["in it"] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handlers_are_as_before() -> None:
    """With nothing to tell."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts_wait():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_process_that_is_started_is_known() -> None:
    """What Python does after a fork swallows an exception, and leaves the lock of `logging` locked: not here."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with interrupts_wait():
            started.append(subprocess.Popen(["true"], preexec_fn=lambda: os.kill(os.getppid(), signal.SIGTERM)))

    with sigterm_interrupts(), pytest.raises(KeyboardInterrupt):
        start()
    assert started[0].wait(timeout=10) == 0
    assert not logging._lock._is_owned()  # type: ignore[attr-defined]


def test_ray_is_started_whole_before_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a Ray may hang, or stay."""
    steps = []

    def init(**_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # for the interrupt to break in, if it can
        steps.append("started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: steps.append("stopped"))
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts(), local_ray(1, verbose=False):
        steps.append("served")
    assert steps == ["started", "stopped"]


def test_a_ray_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the caller's."""

    def init(**_: object) -> None:
        raise RuntimeError("no port is free")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="no port is free"), local_ray(1, verbose=False):
        pass
