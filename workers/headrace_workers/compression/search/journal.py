"""What a search has tried so far, a line for each trial, on disk before the next one begins.

Whoever is killed and starts again repeats no trial. A line that was torn by a crash is as if it had not been written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.errors import CompressionError
from headrace_workers.compression.recipe import Recipe
from headrace_workers.compression.search.latency_table import LinearUse
from headrace_workers.compression.search.served import ServedFigures

__all__ = ["Journal", "Judged", "Question", "Tried"]

JOURNAL_FILE: Final = "search.jsonl"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Question(_Part):
    """What trials are comparable under: the same model, data, seed and node. A target may change."""

    kind: Literal["question"] = "question"
    source_sha256: str
    data_sha256: str
    seed: int
    node: str
    """A fingerprint."""
    effort: dict[str, int] = {}


class Tried(_Part):
    """A trial and what came of it."""

    kind: Literal["tried"] = "tried"
    key: str
    name: str
    rung: int
    fidelity: float
    recipe: Recipe
    seconds: float
    figures: dict[str, float] = {}
    """By the names of targets' quantities."""
    uses: list[LinearUse] = []
    artifact: str = ""
    error: str = ""
    """Why there is nothing, if there is nothing."""


class Judged(_Part):
    """What a finalist was seen to do in the end."""

    kind: Literal["judged"] = "judged"
    artifact: str
    """Empty for the model as it came."""
    held_out: dict[str, float] = {}
    """Figures of quality on examples that nothing was chosen by."""
    served: ServedFigures | None = None
    """Behind the service; None where there is none."""


class Journal:
    """The journal of one search.

    Args:
        folder: of the search.
        question: what it is about.

    Raises:
        CompressionError: the folder has a journal of another question.
    """

    def __init__(self, folder: Path, question: Question) -> None:
        self.path = folder / JOURNAL_FILE
        self.tried: list[Tried] = []
        self.judged: dict[str, Judged] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines()
        if not lines:
            self._append(question)
            return
        self._check(lines[0], question)
        for line in lines[1:]:
            self._take(line)

    def add(self, entry: Tried | Judged) -> None:
        """Remember it for good."""
        self._append(entry)
        if isinstance(entry, Tried):
            self.tried.append(entry)
        else:
            self.judged[entry.artifact] = entry

    def _whole_lines(self) -> list[bytes]:
        """The lines of the file, which is cut behind the last whole one."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return whole.splitlines()

    def _check(self, line: bytes, question: Question) -> None:
        try:
            before = Question.model_validate_json(line)
        except ValidationError:
            raise CompressionError(f"{self.path} is no journal of a search; choose another -o") from None
        other = [name for name in Question.model_fields if getattr(before, name) != getattr(question, name)]
        if other:
            raise CompressionError(
                f"{self.path} is of a search that differs in {', '.join(other)}; choose another -o, or remove that one"
            )

    def _take(self, line: bytes) -> None:
        try:
            if json.loads(line).get("kind") == "judged":
                judged = Judged.model_validate_json(line)
                self.judged[judged.artifact] = judged
            else:
                self.tried.append(Tried.model_validate_json(line))
        except (ValueError, AttributeError) as error:
            raise CompressionError(f"{self.path} holds a line that is none of a search's: {error}") from None

    def _append(self, entry: BaseModel) -> None:
        with self.path.open("ab") as file:
            file.write(entry.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
