"""What benchmarks of whole services have in common: the texts that go through, and how long all answers take."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from headrace import AsyncClient, Job
from headrace.errors import HeadraceError
from headrace_cluster.corpus import heavy_tailed_texts
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["answered_in_s", "mixed_texts"]

_LONGEST: Final = 1 << 20


def mixed_texts(model: str, count: int) -> list[str]:
    """Texts of mixed lengths, as an encoder's tokenizer counts them: none is too long."""
    return heavy_tailed_texts(count, load_tokenizer(find_source(model), _LONGEST).lengths)


async def answered_in_s(client: AsyncClient, jobs: Iterable[Job], count: int, *, in_flight: int) -> float:
    """Seconds from the first of `count` jobs to the last answer.

    Raises:
        HeadraceError: jobs failed.
    """
    began_s, answered = time.perf_counter(), 0
    async for result in client.map(jobs, in_flight=in_flight):
        answered += result.ok
    took_s = time.perf_counter() - began_s
    if answered != count:
        raise HeadraceError(f"{count - answered} of {count} jobs failed")
    return took_s
