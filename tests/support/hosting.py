"""Engines of many models for one host: each answers with its name, and fails where it gets another's jobs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from headrace.messages import Batch, LaneEntry
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared
from headrace_workers.engines.factory import EngineConfig
from support.by_hand import HandService

__all__ = ["MarkedEngine", "batch_of", "config_of", "make"]


class MarkedEngine:
    """Hosts the model `name`: its jobs begin with that name, and any other's are a fault.

    Args:
        name: of its model.
        size: bytes that it says it takes.
        gate: what a batch waits for, if anything.
    """

    def __init__(self, name: str, size: int = 1 << 20, gate: threading.Event | None = None) -> None:
        self.info = EngineInfo(variant=name, task="test", device="cpu", load_s=0.0, details={"bytes": size})
        self._name = name
        self._gate = gate

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        return [Prepared(1, value) for value, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        strangers = [item.data for item in items if not str(item.data).startswith(f"{self._name} ")]
        assert not strangers, f"{self._name} was given {strangers}"
        if self._gate is not None:
            assert self._gate.wait(30)
        return [f"{item.data} by {self._name}" for item in items]

    def example(self) -> tuple[Any, dict[str, Any]]:
        return f"{self._name} example", {}


def config_of(name: str, **options: Any) -> EngineConfig:
    """A `MarkedEngine`, as a service's configuration asks for it."""
    return EngineConfig(kind="custom", target="support.hosting:MarkedEngine", options={"name": name, **options})


def make(config: EngineConfig) -> MarkedEngine:
    """The engine of a configuration, in this process."""
    return MarkedEngine(**config.options)


async def batch_of(service: HandService, *, alone: bool = False, entries: Sequence[LaneEntry] | None = None) -> bytes:
    """All that waits in a model's lanes, as a router would send it."""
    taken = await service.take() if entries is None else entries
    return Batch(service.model, 1_764_000_000_000, taken, alone).to_bytes()
