"""Engines: how jobs run. `base` is the contract; each other file is one way to fulfil it."""

from headrace_workers.engines.base import Engine, EngineInfo, ItemError, Prepared

__all__ = ["Engine", "EngineInfo", "ItemError", "Prepared"]
