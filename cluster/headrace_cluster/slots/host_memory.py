"""What a replica of a shared pool has loaded, as far as its router knows: what it says, and what is on its way there.

Pure. A model that was sent a batch counts as loaded at once; what had to go for it is guessed as the replica will do
it, who was used longest ago first, until the replica has said.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field

from headrace.messages.host import LoadedModel

__all__ = ["HostMemory", "SharedReplica"]


class HostMemory:
    """The models of one replica, the one that was used last at the end."""

    def __init__(self) -> None:
        self.memory_bytes: int | None = None
        """For all models together; None before the replica has said anything."""
        self._models: dict[str, tuple[int, int]] = {}
        self._ran: dict[str, float] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._models

    @property
    def models(self) -> Set[str]:
        """Those that are there, or will be once what was sent there is through."""
        return frozenset(self._models)

    @property
    def used_bytes(self) -> int:
        """Of those that are there, or will be once what was sent there is through."""
        return sum(size for size, _ in self._models.values())

    def used(self, model: str, age: int, size_bytes: int) -> None:
        """A batch of a model is on its way there. `age` grows from use to use, over all replicas."""
        known = self._models.pop(model, None)
        size_bytes = known[0] if known is not None else size_bytes
        if known is None:
            for gone in self._victims(size_bytes):
                del self._models[gone]
        self._models[model] = size_bytes, age

    def _victims(self, size_bytes: int) -> list[str]:
        """Who has to go for so many bytes."""
        if self.memory_bytes is None:
            return []
        free = self.memory_bytes - self.used_bytes
        gone: list[str] = []
        for model, (size, _) in self._models.items():
            if free >= size_bytes:
                break
            gone.append(model)
            free += size
        return gone

    def loss(self, size_bytes: int) -> float:
        """How dear it is to load so many bytes here: the last use of those that would go; -inf if there is room."""
        return max((self._models[model][1] for model in self._victims(size_bytes)), default=-math.inf)

    def heard(self, memory_bytes: int, loaded: Sequence[LoadedModel], *, coming: Container[str]) -> Mapping[str, float]:
        """The replica says what it has loaded; returns for each model the seconds that it ran since the last time.

        Args:
            memory_bytes: for all models.
            loaded: in the order of their use.
            coming: models that were sent batches which have not come back; they will be loaded if they are not.
        """
        first = self.memory_bytes is None
        self.memory_bytes = memory_bytes
        before = self._models
        self._models = {model.name: (model.bytes, before.get(model.name, (0, 0))[1]) for model in loaded}
        self._models |= {name: known for name, known in before.items() if name in coming and name not in self._models}
        ran = {model.name: max(0.0, model.ran_s - self._ran.get(model.name, 0.0)) for model in loaded}
        self._ran |= {model.name: model.ran_s for model in loaded}
        return {} if first else ran  # what ran before this router came is nothing that it accounts for


@dataclass(slots=True, eq=False)
class SharedReplica:
    """A replica of a shared pool, as all routers of one process see it."""

    name: str
    load: float = 0.0
    """Which part of it is taken."""
    out: dict[str, int] = field(default_factory=dict)
    """Batches, or jobs, that are out there, by the names of their routers."""
    loading: set[str] = field(default_factory=set)
    """Models that were sent there and that it has not said to have."""
    gone: bool = False
    suspended_until_s: float = -math.inf
    reserved_for: str | None = None
    memory: HostMemory = field(default_factory=HostMemory)

    def works(self, now_s: float) -> bool:
        """Whether it may be given something."""
        return not self.gone and self.suspended_until_s <= now_s
