"""How many pages of keys and values a replica has: decided once, when the model is loaded, and never exceeded."""

from __future__ import annotations

from typing import Final

import torch

from headrace.errors import ModelLoadError
from headrace_workers import node
from headrace_workers.generation.runner import PAGE_TOKENS, RunnerInfo

__all__ = ["kv_pages"]

_MEMORY_SHARE: Final = {"cpu": 0.25, "cuda": 0.8}
"""Of the memory that is left when the model is loaded, what keys and values take unless told."""


def kv_pages(info: RunnerInfo, kv_cache_bytes: int | None, slots: int) -> int:
    """How many pages of keys and values fit.

    Args:
        info: of the runner, its model loaded.
        kv_cache_bytes: the bound; None: what the slots can need, but no more than a quarter of the memory that is left
            (on a GPU: four fifths).
        slots: how many sequences run together.

    Raises:
        ModelLoadError: not even one sequence of full length fits.
    """
    full = -(-info.max_positions // PAGE_TOKENS)
    bound = kv_cache_bytes
    if bound is None:
        bound = min(int(_memory_left(info.device) * _MEMORY_SHARE[info.device]), slots * full * info.page_bytes)
    pages = bound // info.page_bytes
    if pages < full:
        raise ModelLoadError(
            f"keys and values of one sequence of {info.max_positions:,} tokens take {full * info.page_bytes:,} bytes, "
            f"and {bound:,} are allowed: raise kv_cache_bytes, or set max_tokens to {pages * PAGE_TOKENS:,} or less"
        )
    return int(pages)


def _memory_left(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else node.available_memory_bytes()
