"""Logs for machines: one JSON object a line, with model, job and trace where they are known.

What is known goes beside the message, not only into it: `log.warning("…", extra=about(model=…, job_id=…))`. A job's
payload is never logged, and neither is the message of what an engine raised, which may quote it: `raised_at` says
instead where that was.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, Literal, TextIO

__all__ = ["JsonFormatter", "about", "configure_logs", "raised_at"]

_FIELDS: Final = ("model", "pool", "job_id", "trace_id", "batch_jobs", "replica")
"""What a line may say beside its message, in this order."""
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_INNERMOST: Final = 3


def about(
    *, model: str = "", pool: str = "", job_id: str = "", traceparent: str = "", batch_jobs: int = 0, replica: str = ""
) -> dict[str, Any]:
    """What a record is about, for `extra`; what is empty is left out."""
    trace_id = traceparent[3:35] if len(traceparent) >= 35 else ""
    values = (model, pool, job_id, trace_id, batch_jobs, replica)
    return {name: value for name, value in zip(_FIELDS, values, strict=True) if value}


def raised_at(error: BaseException) -> str:
    """The kind of an error and where it was raised, innermost last; without its message, which may quote a payload."""
    frames = traceback.extract_tb(error.__traceback__)[-_INNERMOST:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {places}" if places else type(error).__name__


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: `time` (UTC), `level`, `logger`, `message`, and what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, None))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(
    form: Literal["text", "json"], level: Literal["debug", "info", "warning", "error"], *, stream: TextIO | None = None
) -> None:
    """Have everything below the logger `headrace` written in this form, to standard error or to `stream`.

    For processes that are the service's own; a program that uses the client sets its logs up itself.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logger = logging.getLogger("headrace")
    for former in logger.handlers[:]:
        logger.removeHandler(former)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
