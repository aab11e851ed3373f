"""What `headrace bench generate` measures, how much of it, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace_workers.models.source import ModelSource
from headrace_workers.models.tokenizer import TextTokenizer

__all__ = ["GeneratePlan", "GenerateReport", "Say", "Subject"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GeneratePlan:
    """How much to measure."""

    prompts: int = 64
    longest_answer: int = 128
    slots: int = 32
    rounds: int = 3
    system_rounds: int = 5
    """Its figures are differences of a few in a hundred."""
    single_tokens: int = 128
    """New tokens of the sequence that runs alone."""
    choice_prompts: int = 32
    choice_tokens: int = 12
    """By which llama.cpp's settings are chosen: prompts, and new tokens of each at most; without tokens none are."""
    judged_tokens: int = 12_000
    window: int = 512
    """Of the perplexities: about how many tokens, in runs of how many."""
    prefix_jobs: int = 64
    prefix_tokens: int = 400
    prefix_new_tokens: int = 16
    lone_jobs: int = 20
    lone_tokens: int = 8
    draft: str = ""
    """A smaller model of the same vocabulary, whose guesses are tried; empty: none."""
    draft_jobs: int = 8
    """A round, each alone."""
    precision: str = "int8"
    peers: Path | None = None
    """A folder with a virtual environment for each peer, as `make peers` makes it."""

    @classmethod
    def quick(cls, peers: Path | None, *, draft: str = "") -> GeneratePlan:
        """A short look."""
        return cls(
            prompts=8,
            longest_answer=12,
            rounds=1,
            system_rounds=1,
            single_tokens=8,
            choice_tokens=0,
            judged_tokens=512,
            window=256,
            prefix_jobs=8,
            prefix_new_tokens=4,
            lone_jobs=3,
            draft=draft,
            draft_jobs=2,
            peers=peers,
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that all of them run."""

    path: str
    source: ModelSource
    tokenizer: TextTokenizer
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


@dataclass(slots=True)
class GenerateReport:
    """What came out; None is what was not measured. Rates are new tokens a second."""

    prompts: int = 0
    new_tokens: int = 0
    slots: int = 0
    tokens_per_s: float | None = None
    tokens_per_s_spread: dict[str, float] = field(default_factory=dict)
    """The slowest and the fastest run."""
    llama_cpp_tokens_per_s: float | None = None
    """Of its best file."""
    llama_cpp_files: list[dict[str, Any]] = field(default_factory=list)
    """For each: its rates, ours divided by them, its perplexity, and the settings that were the best."""
    ratio_to_llama_cpp: float | None = None
    """To its best file."""
    transformers_tokens_per_s: float | None = None
    ratio_to_transformers: float | None = None
    transformers_generate_batch_tokens_per_s: float | None = None
    ratio_to_transformers_generate_batch: float | None = None
    single_tokens_per_s: float | None = None
    single_llama_cpp_tokens_per_s: float | None = None
    single_ratio_to_llama_cpp: float | None = None
    perplexity: float | None = None
    judged_tokens: int = 0
    kv_cache_bytes: int = 0
    kv_cache_peak_bytes: int = 0
    prefix_speedup: float | None = None
    prefix_tokens_per_s: float | None = None
    prefix_cached_share: float | None = None
    """Of the prompts' tokens, those that were found computed."""
    draft_speedup: float | None = None
    """Of one sequence alone."""
    draft_guessed: int | None = None
    """Tokens that were guessed in all; few where guessing was found not to pay."""
    draft_right: float | None = None
    """Share of them that was kept."""
    draft_used: float | None = None
    """Guesses for each new token."""
    draft_changed: int = 0
    """Answers that were another with the draft: there must be none."""
    system_tokens_per_s: float | None = None
    system_ratio_to_engine: float | None = None
    streamed_tokens_per_s: float | None = None
    stream_overhead_ratio: float | None = None
    """Share of the throughput that streaming costs."""
    ttft_ms: float | None = None
    ttft_over_engine_ms: float | None = None
    chunk_gap_p50_ms: float | None = None
    chunk_gap_p99_ms: float | None = None
    chunk_gap_p99_over_median: float | None = None
    lost: int = 0
    doubled: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields, rounded to what they are good for."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
