"""The output of `headrace batch`: two files of JSON lines that grow, and survive whatever ends the process.

A line of the input is finished by exactly one line in one of the two: in the output if it was answered, in
the error file if not. Each names the number of the input's line, which is how a batch that goes on knows
what is done. Answers are written first, brought to disk next, recorded in the state file third, and only
then deleted from Redis; a crash between any two of these steps repeats the later ones and loses nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from headrace.cli.batch_input import LineCode
from headrace.cli.batch_state import BatchIdentity, BatchState, sync_directory
from headrace.cli.compact_sets import LineSet, TextSet
from headrace.cli.output import CommandError, dump

__all__ = ["BatchOutput"]

_HEAD: Final = re.compile(
    rb'\{"custom_id": (null|"(?:[^"\\]|\\.)*"), "line": ([0-9]{1,18}), (?:"error": \{"code": "([^"]*)")?'
)


class _Line(NamedTuple):
    """What a line that was written earlier says of itself."""

    custom_id: str | None
    number: int
    code: str | None


class BatchOutput:
    """The files of one batch. `open` it, or be refused.

    Args:
        output: where answers go.
        errors: where failures go; the file is made when there is the first.
        state: where the state lies until the batch is complete.
    """

    def __init__(self, output: Path, errors: Path, state: Path) -> None:
        self.output = output
        self.errors = errors
        self.finished = LineSet()
        self.custom_ids = TextSet()
        self.done = 0
        self.failed = 0
        self._state_path = state
        self._done_file: BinaryIO | None = None
        self._failed_file: BinaryIO | None = None
        self._state: BatchState | None = None

    @property
    def state(self) -> BatchState:
        """The batch's state, as of the last checkpoint."""
        if self._state is None:
            raise RuntimeError("the batch's output is not open")
        return self._state

    def open(self, identity: BatchIdentity, *, restart: bool) -> None:
        """Take possession of the files and find out what is done; with `restart`, of nothing.

        Raises:
            CommandError: another batch writes them, or they are not this batch's, or they were changed.
        """
        self._done_file = _open(self.output)
        try:
            self._lock(self._done_file)
            if restart:
                self._discard(self._done_file)
            state = BatchState.read(self._state_path)
            if state is None:
                self._refuse_foreign()
            elif difference := state.identity.difference(identity):
                raise CommandError(
                    f"{self._state_path} belongs to another batch; the difference: {difference}",
                    code="batch_changed",
                    hint="repeat the command as it was, name another output, or begin anew with --restart",
                )
            self._state = state or BatchState.begin(identity)
            self._recover(self._done_file)
        except BaseException:
            self.close()
            raise
        if state is None:
            self._state.write(self._state_path)

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{self.output} is being written by another `headrace batch`",
                code="output_busy",
                hint="wait for it to end, or name another output",
            ) from None

    def _discard(self, file: BinaryIO) -> None:
        self._state_path.unlink(missing_ok=True)
        self.errors.unlink(missing_ok=True)
        file.truncate(0)

    def _refuse_foreign(self) -> None:
        for path in (self.output, self.errors):
            if path.exists() and path.stat().st_size:
                raise CommandError(
                    f"{path} exists, and no batch under way left it: it is complete, or something else",
                    code="output_exists",
                    hint="name another output, or replace it with --restart",
                )

    # -- what an earlier run left -------------------------------------------------------------------------

    def _recover(self, done_file: BinaryIO) -> None:
        self.done = self._take_stock(done_file, self.output, self.state.output_bytes)
        if self.errors.exists() or self.state.errors_bytes:
            self._failed_file = _open(self.errors)
            self.failed = self._take_stock(self._failed_file, self.errors, self.state.errors_bytes)

    def _take_stock(self, file: BinaryIO, path: Path, durable_bytes: int) -> int:
        """Remember every line of a file and cut off what a crash left torn; returns how many lines there are."""
        count = end = 0
        file.seek(0)
        for text in file:
            line = _read_back(text, durable=end + len(text) <= durable_bytes)
            if line is None:
                break
            self._remember(line)
            end += len(text)
            count += 1
        if end < durable_bytes:
            raise CommandError(
                f"{path} was changed behind line {count}: it is not what the batch wrote",
                code="output_changed",
                hint="put the file back and repeat the command, or begin anew with --restart",
            )
        file.seek(end)
        file.truncate(end)
        return count

    def _remember(self, line: _Line) -> None:
        self.finished.add(line.number)
        # The id of a line that was refused as a duplicate belongs to another line.
        if line.custom_id is not None and line.code != LineCode.DUPLICATE_CUSTOM_ID:
            self.custom_ids.add(line.custom_id)

    # -- what this run adds -------------------------------------------------------------------------------

    def write_done(self, number: int, custom_id: str, fields: dict[str, Any]) -> None:
        """Finish a line of the input by its answer."""
        if self._done_file is None:
            raise RuntimeError("the batch's output is not open")
        _write(self._done_file, {"custom_id": custom_id, "line": number, **fields})
        self.finished.add(number)
        self.done += 1

    def write_failed(self, number: int, custom_id: str | None, failure: dict[str, Any]) -> None:
        """Finish a line of the input by what was wrong with it."""
        if self._failed_file is None:
            self._failed_file = _open(self.errors)
            sync_directory(self.errors)
        _write(self._failed_file, {"custom_id": custom_id, "line": number, "error": failure})
        self.finished.add(number)
        self.failed += 1

    def flush(self) -> None:
        """Let other processes see what was written; a crash of this one cannot take it back."""
        for file in (self._done_file, self._failed_file):
            if file is not None:
                file.flush()

    def checkpoint(self, cursor: str) -> None:
        """Bring everything to disk, and record that every answer up to `cursor` is there."""
        self.flush()
        sizes = []
        for file in (self._done_file, self._failed_file):
            if file is not None:
                os.fsync(file.fileno())
            sizes.append(0 if file is None else file.tell())
        update = {"cursor": cursor, "output_bytes": sizes[0], "errors_bytes": sizes[1]}
        self._state = self.state.model_copy(update=update)
        self._state.write(self._state_path)

    def finish(self) -> None:
        """The batch is complete: from here on its files are its owner's."""
        self._state_path.unlink()
        sync_directory(self._state_path)

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._done_file, self._failed_file):
            if file is not None:
                with suppress(OSError):  # what could not be written is written again by the next run
                    file.close()
        self._done_file = self._failed_file = None


def _open(path: Path) -> BinaryIO:
    """Open for reading and appending; make it if need be, and never cut it."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _write(file: BinaryIO, fields: dict[str, Any]) -> None:
    file.write(dump(fields).encode("utf-8") + b"\n")


def _read_back(text: bytes, *, durable: bool) -> _Line | None:
    """What a line says of itself, or None if it is not whole.

    A line that was on disk when the state said so is taken at its head; of others, none is believed that
    does not parse to its end.
    """
    head = _HEAD.match(text)
    if head is None or not text.endswith(b"\n"):
        return None
    if not durable:
        try:
            json.loads(text)
        except ValueError:
            return None
    code = head[3]
    return _Line(json.loads(head[1]), int(head[2]), None if code is None else code.decode())
