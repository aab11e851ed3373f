"""How much memory a model takes: as well as can be said before it is loaded, and better afterwards.

An engine that knows says so in its `info`, as `bytes`. For others the files of the weights are the measure: what is
quantized as it is loaded takes less. A class of the user's has no files here; it is measured by what the process grew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from headrace_workers.engines.base import EngineInfo
from headrace_workers.engines.factory import EngineConfig

__all__ = ["LEAST_BYTES", "expected_bytes", "loaded_bytes", "resident_bytes"]

LEAST_BYTES: Final = 1 << 20
"""What the smallest model is taken to need, with its tokenizer, threads and connections."""

_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".pt")


def expected_bytes(config: EngineConfig) -> int:
    """What a model that is about to be loaded will take; `LEAST_BYTES` if nothing is known of it."""
    return max(LEAST_BYTES, sum(_file_bytes(model) for model in (config.model, config.draft)) + _cache(config))


def _file_bytes(model: str) -> int:
    """Of weights that lie on this machine. What is fetched from elsewhere is not known before it is here."""
    if not model:
        return 0
    path = Path(model)
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS and file.is_file())


def _cache(config: EngineConfig) -> int:
    return config.kv_cache_bytes or 0


def loaded_bytes(info: EngineInfo, *, expected: int, grown: int) -> int:
    """What a model that was just loaded takes.

    Args:
        info: its engine's.
        expected: what `expected_bytes` said.
        grown: how much the process's memory grew meanwhile; other models compute in it, so it is a rough measure.
    """
    told = info.details.get("bytes")
    if isinstance(told, int) and told > 0:
        return max(LEAST_BYTES, told)
    cache = info.details.get("kv_cache_bytes")
    if expected > LEAST_BYTES:  # by its files, to which a cache adds that the engine chose itself
        return max(expected, cache) if isinstance(cache, int) else expected
    return max(LEAST_BYTES, grown)


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
