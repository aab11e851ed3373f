"""A smaller model that guesses tokens ahead: its own pages, and for each sequence how far it has come.

It draws as the model itself would, by the same seed and position, so that a sampled job's guesses are right as often as
the two models agree. What it computed for guesses that were wrong is computed again; its cache is never shared, and
where it has no page left it does not guess.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace_workers.engines.base import ItemError
from headrace_workers.generation.pages import PagePool
from headrace_workers.generation.runner import DecoderRunner, Step
from headrace_workers.generation.sampling import Draw, Drawn, Sampler
from headrace_workers.generation.sequence import Sequence
from headrace_workers.generation.speculation import DraftPolicy

__all__ = ["Draft"]

_MOST_ROWS: Final = 512
"""Rows of one pass through the draft: a prompt that it has not seen yet goes through in such chunks."""


@dataclass(slots=True)
class _Track:
    """How far the draft has followed a sequence."""

    computed: int = 0
    pages: list[int] = field(default_factory=list)


class Draft:
    """Guesses tokens for sequences that decode. Used from the decode thread.

    Args:
        runner: of the draft model; its pages are allocated here.
        pages: how many it may have.
        sampler: of the same vocabulary.
        policy: whether guessing pays.

    Raises:
        MemoryError: there is no room for its pages.
    """

    def __init__(self, runner: DecoderRunner, pages: int, sampler: Sampler, policy: DraftPolicy) -> None:
        runner.allocate(pages)
        self.policy = policy
        self.guessed = 0
        """Tokens that were guessed so far."""
        self.right = 0
        """How many of them were kept."""
        self._runner = runner
        self._pool = PagePool(pages, prefix_cache=False)
        self._sampler = sampler
        self._tracks: dict[Sequence, _Track] = {}

    def guess(self, sequences: Items[Sequence], draws: Items[Draw], counts: Items[int]) -> list[list[int]]:
        """Guess the next tokens of each sequence; fewer than asked for, perhaps none, where there is no room.

        Args:
            sequences: that decode.
            draws: of each; not changed.
            counts: how many tokens of each.
        """
        guesses: list[list[int]] = [[] for _ in sequences]
        ahead = [copy.copy(draw) for draw in draws]
        active = [at for at, count in enumerate(counts) if count and self._make_room(sequences[at], count)]
        while active:
            drawn = self._pass([(sequences[at], guesses[at]) for at in active], [ahead[at] for at in active])
            for at, token in zip(active, drawn, strict=True):
                if isinstance(token, Drawn):
                    guesses[at].append(token.token)
            active = [
                at
                for at, token in zip(active, drawn, strict=True)
                if isinstance(token, Drawn) and len(guesses[at]) < counts[at]
            ]
        return guesses

    def settle(self, sequence: Sequence, computed: int) -> None:
        """No more of a sequence's tokens than `computed` are as the draft took them to be."""
        track = self._tracks.get(sequence)
        if track is not None:
            track.computed = min(track.computed, computed)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended: its pages are free."""
        track = self._tracks.pop(sequence, None)
        if track is not None:
            self._pool.release(track.pages)

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Get the pages for a sequence and its guesses, if there are enough and the draft reaches so far."""
        tokens = len(sequence) + count - 1
        track = self._tracks.setdefault(sequence, _Track())
        missing = self._pool.pages_for(tokens) - len(track.pages)
        if tokens > self._runner.info.max_positions or missing > self._pool.available:
            return False
        if missing > 0:
            track.pages += self._pool.allocate(missing)
        return True

    def _pass(self, parts: Items[tuple[Sequence, list[int]]], draws: Items[Draw]) -> list[Drawn | ItemError]:
        """Draw the next token behind each sequence and its guesses so far."""
        self._catch_up([sequence for sequence, _ in parts])
        rows = [self._rows_of(sequence, guesses) for sequence, guesses in parts]
        logits = self._runner.run(self._step([sequence for sequence, _ in parts], rows))
        for (sequence, _), tokens in zip(parts, rows, strict=True):
            self._tracks[sequence].computed += len(tokens)
        return self._sampler.draw(logits, draws, self._runner.best)

    def _catch_up(self, sequences: Items[Sequence]) -> None:
        """Compute what is too much for one pass."""
        for sequence in sequences:
            track = self._tracks[sequence]
            while len(sequence) - track.computed > _MOST_ROWS:
                tokens = sequence.tokens(track.computed, track.computed + _MOST_ROWS)
                self._runner.run(self._step([sequence], [tokens]))
                track.computed += len(tokens)

    def _rows_of(self, sequence: Sequence, guesses: list[int]) -> list[int]:
        computed, length = self._tracks[sequence].computed, len(sequence)
        return (sequence.tokens(computed, length) if computed < length else []) + guesses[max(0, computed - length) :]

    def _step(self, sequences: Items[Sequence], rows: Items[list[int]]) -> Step:
        tracks = [self._tracks[sequence] for sequence in sequences]
        starts = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        pages = np.full((len(tracks), max(len(track.pages) for track in tracks)), -1, dtype=np.int32)
        for row, track in enumerate(tracks):
            pages[row, : len(track.pages)] = track.pages
        return Step(
            tokens=np.array([token for tokens in rows for token in tokens], dtype=np.int32),
            starts=starts,
            positions=np.array([track.computed for track in tracks], dtype=np.int32),
            pages=pages,
            wanted=starts[1:] - 1,
        )
