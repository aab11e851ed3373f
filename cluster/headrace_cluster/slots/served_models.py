"""Which of the models that share a pool has been served least: the fairness between them.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) in seconds of replicas, as replicas report them. A model
that had nothing to do starts where the others are: what it did not use is not saved up. Batches that are out count by
what the model's last ones took, until their replica has said what they did take. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ServedModel", "ServedModels"]

_WEIGHT: Final = 0.2
_FIRST_S: Final = 0.01
"""What a batch is taken to need before the first has come back."""
_FIRST_LOAD_S: Final = 1.0


@dataclass(slots=True, eq=False)
class ServedModel:
    """What one model has had, and what it takes."""

    name: str
    served_s: float = 0.0
    out: float = 0.0
    """Batches that are out, in parts of one where jobs go one by one."""
    batch_s: float = _FIRST_S
    load_s: float = _FIRST_LOAD_S
    """What it takes to load it."""
    bytes: int = 0
    """What it takes when it is loaded; 0: nobody knows yet."""

    @property
    def turn_s(self) -> float:
        """By this number those that wait are put in order, the least first."""
        return self.served_s + self.out * self.batch_s


class ServedModels:
    """All models of a pool."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self._now_s = 0.0
        self._usual_bytes = 0

    def of(self, name: str) -> ServedModel:
        """A model, made where it is missing."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = ServedModel(name, served_s=self._now_s)
        return model

    def comes(self, model: ServedModel) -> None:
        """A model that had nothing to do has something."""
        model.served_s = max(model.served_s, self._now_s)

    def loaded(self, model: ServedModel, size_bytes: int, load_s: float) -> None:
        """A replica says what it took to load a model."""
        if model.bytes != size_bytes:
            self._usual_bytes = size_bytes
        model.bytes, model.load_s = size_bytes, load_s

    def bytes_of(self, model: ServedModel) -> int:
        """What a model takes; of one that was never loaded, what the last did that was loaded for the first time."""
        return model.bytes or self._usual_bytes

    def sent(self, model: ServedModel, batches: float) -> None:
        """So much of a model was sent to a replica."""
        self._now_s = max(self._now_s, model.served_s)
        model.out += batches

    def came_back(self, model: ServedModel, batches: float) -> None:
        """So much of a model is out no more."""
        model.out = max(0.0, model.out - batches)

    def ran(self, model: ServedModel, seconds: float) -> None:
        """A replica says how long a model's jobs ran there since it said so last."""
        if seconds > 0:
            model.served_s += seconds
            model.batch_s += _WEIGHT * (seconds - model.batch_s)
