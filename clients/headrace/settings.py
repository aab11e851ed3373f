"""The light client's few settings, all of them arguments. The server's URL may come from the environment, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import redis.asyncio
from pydantic import BaseModel, ConfigDict, Field

from headrace.server.connection import commands, resolve_url
from headrace.server.url import with_tls

__all__ = ["ClientSettings"]


class ClientSettings(BaseModel):
    """How a client talks to Redis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """How long one command may take before it is tried again."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """How often a command is tried again. Safe: every one of them is replay-safe."""
    durable: Literal["written", "fsynced"] = "written"
    """When a job counts as handed over: when the server has written it, which is worth what its append-only file is
    set to; or when it is on the server's disk, which takes up to a second or two on a server with `everysec` and asks
    for one whose WAITAOF can be trusted (docs/durability.md)."""
    ca_file: Path | None = None
    """With `rediss`: the certificate of the authority that the server's must be of; else those the machine trusts."""
    cert_file: Path | None = None
    """With `rediss`: our own certificate, where the server asks for one."""
    key_file: Path | None = None
    """The key of `cert_file`, unless it is in there."""
    keep_results: bool = False
    """Leave answers in the inbox after they were consumed, for the service's retention time.
    By default the client deletes what it has handed to its caller."""

    def url_of(self, url: str | None) -> str:
        """The server's URL, found out if none is given, with the certificates."""
        return with_tls(resolve_url(url), ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file)

    def connect(self, url: str) -> redis.asyncio.Redis:
        """Connections to the server for replay-safe commands."""
        return commands(url, timeout_s=self.command_timeout_s, retries=self.retries, fsynced=self.durable == "fsynced")
