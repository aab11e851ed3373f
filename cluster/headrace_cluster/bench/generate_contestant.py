"""A program that takes part in `headrace bench generate`, in a process of its own: ours, and those of the peers."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Contestant"]

_TIMEOUT_S: Final = 900.0
_KEPT_BYTES: Final = str(1 << 30)
_ENVIRONMENT: Final = {  # as `node.prepare_process` sets ours up: freed memory is kept, whoever allocates it
    "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
    "MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    "TOKENIZERS_PARALLELISM": "false",
}


class Contestant:
    """Runs a program that answers lines of JSON, as `peers/json_lines.py` does; ends it with the context.

    Args:
        command: the program and its arguments.
        timeout_s: for one answer.
    """

    def __init__(self, command: Sequence[str | Path], *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lasts as long as the process
        self._name = " ".join(Path(part).name for part in command[1:])
        self._process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | _ENVIRONMENT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """What the program answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; with what it said last.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(self._timeout_s, self._process.kill)
        watch.start()
        try:
            print(json.dumps({"do": do, **given}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise RuntimeError(f"{self._name} did not answer {do!r}:\n{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.wait(timeout=10)
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-1500:]
