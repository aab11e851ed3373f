"""headrace workers: engines that run jobs, kernels they run on, and the artifacts and recipes behind them.

Everything here may touch torch, and nothing here knows Ray or how batches are formed.
"""

from headrace_workers import openmp as _openmp  # noqa: F401 - before anything loads torch
from headrace_workers.engines import Engine, ItemError, Prepared
from headrace_workers.engines.stepping import StepEngine

__all__ = ["Engine", "ItemError", "Prepared", "StepEngine"]
