"""The first answer of an engine: given before any job waits for it."""

from __future__ import annotations

import logging

from headrace.telemetry.structured_logs import raised_at
from headrace_workers.engines.base import Engine, ItemError
from headrace_workers.telemetry.cold_start import ColdStart

__all__ = ["answer_once"]

log = logging.getLogger("headrace.replica")


def answer_once(engine: Engine, start: ColdStart) -> None:
    """Have the engine answer its own example, since its first run takes longer than others; `start` times it."""
    with start.phase("first_answer"):
        try:
            prepared = engine.prepare([engine.example()])
            engine.run([item for item in prepared if not isinstance(item, ItemError)])
        except Exception as error:  # whoever wrote the engine; jobs will tell the same, each for itself
            log.warning("the engine does not answer its own example: %s", raised_at(error))
