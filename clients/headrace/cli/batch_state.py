"""The state file of a batch: who it is, and how far its output is known to be on disk.

It lies beside the output for as long as the batch is not complete. It is replaced whole, so that a crash
leaves the old one or the new one; and it is readable by its owner alone, since whoever knows it can tell the
name of the batch's inbox.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.cli.output import CommandError
from headrace.cli.rendering import TensorFormat
from headrace.messages.job import explain

__all__ = ["BatchIdentity", "BatchState", "sync_directory"]

_PERMISSIONS: Final = 0o600


class BatchIdentity(BaseModel):
    """What makes two batches the same: the input's content, and whatever shapes the answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    params: dict[str, Any]
    tensors: TensorFormat
    input_bytes: int
    input_sha256: str

    @property
    def key(self) -> bytes:
        """A hash of all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).digest()

    def difference(self, other: BatchIdentity) -> str:
        """In words, in what another one differs; empty if it does not."""
        return ", ".join(
            name.replace("_", " ").replace("input sha256", "input's content")
            for name in type(self).model_fields
            if getattr(self, name) != getattr(other, name)
        )


class BatchState(BaseModel):
    """One batch under way.

    Ids derive from the batch's key and a secret: a batch that goes on finds its own jobs again, one that
    begins anew never meets the jobs of the last, and nobody can guess where the answers lie.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    identity: BatchIdentity
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    cursor: Annotated[str, Field(pattern=r"^\d{1,19}(-\d{1,19})?$")] = "0"
    """Every answer up to here is in the output or the error file, on disk."""
    output_bytes: Annotated[int, Field(ge=0)] = 0
    errors_bytes: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def begin(cls, identity: BatchIdentity) -> Self:
        """The state of a batch of which nothing is done."""
        return cls(identity=identity, secret=secrets.token_hex(16))

    @property
    def inbox(self) -> str:
        """Where the answers go."""
        return self._derived("inbox", 32)

    @property
    def run(self) -> str:
        """What the ids of all its jobs begin with."""
        return self._derived("jobs", 24)

    def _derived(self, purpose: str, length: int) -> str:
        message = purpose.encode() + self.identity.key
        return hmac.new(bytes.fromhex(self.secret), message, "sha256").hexdigest()[:length]

    def write(self, path: Path) -> None:
        """Replace the file, durably."""
        beside = path.with_name(path.name + ".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PERMISSIONS), "wb") as file:
            file.write(self.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_directory(path)

    @classmethod
    def read(cls, path: Path) -> BatchState | None:
        """The state in a file, or None if there is no file.

        Raises:
            CommandError: the file is not one that a batch wrote.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CommandError(
                f"{path}: {explain(error, 'state file')}", code="state_unreadable", hint="begin anew with --restart"
            ) from None


def sync_directory(path: Path) -> None:
    """Bring the file's name to disk."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
