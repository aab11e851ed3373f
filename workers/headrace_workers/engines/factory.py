"""The one place that turns a configuration into an engine. (First version: echo only; the encoder follows.)"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from headrace_workers.engines.base import Engine
from headrace_workers.engines.echo import EchoEngine

__all__ = ["EngineConfig", "make_engine"]


class EngineConfig(BaseModel):
    """Which engine, on what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["echo"] = "echo"


def make_engine(config: EngineConfig) -> Engine:
    """The engine that the configuration asks for."""
    return EchoEngine()
