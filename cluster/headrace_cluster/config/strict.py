"""What all parts of the configuration are: frozen, and closed to keys that nobody knows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["StrictConfig"]


class StrictConfig(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
