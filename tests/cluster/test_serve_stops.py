"""When `headrace serve` is stopped in order, and when it has not been ready yet."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

import pytest

from headrace.cli.output import Exit, Output
from headrace_cluster import local
from headrace_cluster.cli.serve import serve


class Service:
    """A service without a Ray, which a signal may reach while it starts."""

    url = "redis://nowhere"
    signalled = False
    """Whether one does."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Service:
        if self.signalled:
            signal.raise_signal(signal.SIGINT)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        left.append(self)


left: list[Service] = []


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    left.clear()
    monkeypatch.setattr(local, "LocalService", Service)


def test_one_that_is_stopped_as_soon_as_it_says_that_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word is read before it has had time to wait for anything."""
    say = Output.emit

    def say_and_be_stopped(self: Output, *args: Any, **kwargs: Any) -> None:
        say(self, *args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Output, "emit", say_and_be_stopped)
    try:
        status = serve(["echo=/nowhere"], task="embedding", as_json=True)
    except KeyboardInterrupt:  # which would end the tests as well
        pytest.fail("it was not waiting for its end yet")
    assert status == Exit.DONE
    assert len(left) == 1


def test_one_that_is_stopped_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "signalled", True)
    with pytest.raises(KeyboardInterrupt):
        serve(["echo=/nowhere"], task="embedding", as_json=True)
    assert not left
