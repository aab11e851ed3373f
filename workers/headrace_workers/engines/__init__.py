"""Engines: how jobs run. `base` is the contract; each other file is one way to fulfil it."""

from headrace_workers.engines.base import Engine, EngineInfo, ItemError, Prepared
from headrace_workers.engines.factory import EngineConfig, make_engine

__all__ = ["Engine", "EngineConfig", "EngineInfo", "ItemError", "Prepared", "make_engine"]
