"""Measuring a model behind a service: what is replayed, what comes back, and who can do it.

The service is the cluster package's, which this one must not import: whoever measures is found by the entry point
group `headrace.served`, or passed in.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import CompressionDataError

__all__ = ["Arrival", "LoadFigures", "MeasureServed", "ServedFigures", "find_measure", "poisson_trace", "read_trace"]

log = logging.getLogger(__name__)

_GROUP: Final = "headrace.served"
_MOST_ARRIVALS: Final = 1_000_000
_MOST_TOKENS: Final = 1 << 17
_WORD: Final = "water"
"""A token in nearly every vocabulary, for traces that tell lengths and no texts."""


class Arrival(NamedTuple):
    """A job of a trace."""

    offset_s: float
    """After the first one."""
    text: str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoadFigures(_Part):
    """What jobs waited, at one load."""

    texts_per_s: Annotated[float, Field(gt=0)]
    """That were sent."""
    share: float
    """Of what the service can do at most."""
    p50_ms: float
    p99_ms: float
    """From the moment that a job should have been sent until its answer was there."""
    failed: int = 0


class ServedFigures(_Part):
    """A model behind a service on this node."""

    texts_per_s: Annotated[float, Field(gt=0)]
    """With more work waiting than it can do."""
    replicas: int
    loads: list[LoadFigures] = []
    speedup: float | None = None
    """Over the model as it came, behind the same service; None for that one itself."""


class MeasureServed(Protocol):
    """What measures a model behind a service."""

    def __call__(
        self, model: Path | str, texts: Sequence[str], *, precision: str, variant: str, trace: Sequence[Arrival] = ()
    ) -> ServedFigures:
        """Serve a model and replay work.

        Args:
            model: an artifact or a plain model.
            texts: what is asked at saturation, and drawn from for synthetic loads.
            precision: `int8` for a compressed model, `fp32` for the model as it came.
            variant: of an artifact.
            trace: arrivals to replay; without any, Poisson arrivals at several loads.
        """
        ...


def find_measure() -> MeasureServed | None:
    """The installed way to measure behind a service; None if there is none, or it cannot be imported."""
    for point in entry_points(group=_GROUP):
        try:
            measure: MeasureServed = point.load()
        except ImportError as error:  # its extra is not installed
            log.info("%s cannot be used: %s", point.value, error)
        else:
            return measure
    return None


def poisson_trace(texts: Sequence[str], *, per_s: float, count: int, seed: int) -> list[Arrival]:
    """Arrivals that know nothing of each other: exponential gaps, texts drawn with their own lengths' frequencies."""
    rng = random.Random(seed)
    arrivals, offset_s = [], 0.0
    for _ in range(count):
        arrivals.append(Arrival(offset_s, rng.choice(texts)))
        offset_s += rng.expovariate(per_s)
    return arrivals


def read_trace(path: Path) -> list[Arrival]:
    """Arrivals from a file of lines `{"offset_s": 0.25, "text": …}`, or `"tokens": 30` in place of the text.

    Raises:
        CompressionDataError: it cannot be read, or a line is no arrival; the message names it.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CompressionDataError(f"{path} cannot be read: {error}") from None
    arrivals = [_arrival(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not 0 < len(arrivals) <= _MOST_ARRIVALS:
        raise CompressionDataError(f"{path} has {len(arrivals):,} arrivals; 1 to {_MOST_ARRIVALS:,} can be replayed")
    return sorted(arrivals)


def _arrival(line: str, where: str) -> Arrival:
    try:
        fields = json.loads(line)
        offset_s = float(fields["offset_s"])
        text = fields["text"] if "text" in fields else _text_of(int(fields["tokens"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        text, offset_s = "", -1.0
    if not (isinstance(text, str) and text.strip() and 0 <= offset_s < float("inf")):
        raise CompressionDataError(f'{where} is no arrival; one is {{"offset_s": 0.25, "text": …}}, or "tokens": 30')
    return Arrival(offset_s, text)


def _text_of(tokens: int) -> str:
    return " ".join([_WORD] * tokens) if tokens <= _MOST_TOKENS else ""
