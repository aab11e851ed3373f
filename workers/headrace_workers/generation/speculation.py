"""Whether to guess tokens with a small model before the large one checks them, and how many.

Speculative decoding (Leviathan et al., ICML 2023): a draft proposes k tokens, the model computes all k + 1 rows in one
pass, and what it would have drawn itself decides. Here a token is drawn by its seed and position alone, so a guess is
kept where it equals the token that is drawn (as in blockwise parallel decoding, Stern et al., NeurIPS 2018): the text
is the very one that the model gives without a draft, whether the job is greedy or seeded.

Guessing pays where a pass of many rows costs little more than one of a few; with enough sequences in company it never
does. So nothing is assumed: the policy compares what was measured, and measures the other way now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["DraftPolicy"]

_WEIGHT: Final = 0.1
"""Of the latest cost in an average."""
_KEPT: Final = 0.95
"""What an earlier step's guesses count for, once another step's are known."""
_MARGIN: Final = 1.05
"""How much faster guessing must be: it is not switched on and off for noise."""
_PROBES: Final = 3
"""How many steps in a row a way is tried that has to be measured: the first is slower than usual."""
_MOST_PATIENT: Final = 16
"""How many times as rare probes become where they always tell the same."""


class _Average:
    """An exponential average that begins as a plain one."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(_WEIGHT, 1 / self.count)


@dataclass(slots=True)
class _Costs:
    """What steps of so many sequences cost, in seconds."""

    plain_s: _Average = field(default_factory=_Average)
    """A pass with one row for each."""
    draft_s: _Average = field(default_factory=_Average)
    """A pass of the draft, which guesses one token for each."""
    more_s: _Average = field(default_factory=_Average)
    """What each further row for each sequence adds to a pass."""
    since_probe: int = 0
    """Steps one way since the other was tried."""
    probing: int = 0
    """Steps of a probe that are still to do."""
    patience: int = 1
    best: int = 0
    """How many guesses made the most of a second when it was last worked out."""


class DraftPolicy:
    """How many tokens to guess in the next step, from what the latest ones cost and brought.

    Costs are kept for each number of sequences, how often a guess is right for all of them together.

    Args:
        most: how many tokens may be guessed at once.
        probe_every: after how many steps of one way the other is measured again; while the answer stays the same,
            up to 16 times as many.

    Raises:
        ValueError: one of them is not positive.
    """

    def __init__(self, *, most: int = 5, probe_every: int = 100) -> None:
        if most < 1 or probe_every < 1:
            raise ValueError(f"most={most} and probe_every={probe_every} must both be positive")
        self._most = most
        self._probe_every = probe_every
        self._costs: dict[int, _Costs] = {}
        self._right = 0.0
        self._tried = 0.0

    @property
    def acceptance(self) -> float:
        """How likely a guess is right that has only right ones before it; 0 before anything was guessed."""
        return self._right / self._tried if self._tried else 0.0

    def drafts(self, sequences: int) -> int:
        """How many tokens to guess for each of so many sequences that decode in the next step; 0: none."""
        costs = self._costs.setdefault(sequences, _Costs())
        if costs.plain_s.count < _PROBES:
            return 0
        if costs.more_s.count < _PROBES:
            return self._probe_size()
        if costs.probing == 0 and costs.since_probe >= self._probe_every * costs.patience:
            costs.probing, costs.since_probe = _PROBES, 0
            costs.patience = min(2 * costs.patience, _MOST_PATIENT)
        if costs.probing:
            return 0 if costs.best else self._probe_size()
        return costs.best

    def note_plain(self, sequences: int, *, step_s: float) -> None:
        """A step of one row for each of so many sequences took so long. Steps with rows of prompts are not noted."""
        costs = self._costs.setdefault(sequences, _Costs())
        costs.plain_s.add(step_s)
        if costs.best:
            self._probed(costs)
        else:
            costs.since_probe += 1

    def note_drafted(
        self, sequences: int, *, drafts: int, draft_s: float, verify_s: float, accepted_of_each: Sequence[int]
    ) -> None:
        """A step with guesses was done, without rows of prompts.

        Args:
            sequences: how many there were.
            drafts: how many guesses each of them had.
            draft_s: what guessing took, for all of them and all guesses.
            verify_s: what the model's pass took.
            accepted_of_each: how many guesses were right, for each sequence.
        """
        costs = self._costs.setdefault(sequences, _Costs())
        costs.draft_s.add(draft_s / drafts)
        if costs.plain_s.count:  # so many decode for the first time, when one has just joined
            costs.more_s.add((verify_s - costs.plain_s.value) / drafts)
        # Behind the first wrong guess nothing is learnt about the others.
        self._tried = _KEPT * self._tried + sum(min(right + 1, drafts) for right in accepted_of_each)
        self._right = _KEPT * self._right + sum(accepted_of_each)
        if costs.best:
            costs.since_probe += 1
            self._decide(costs)
        else:
            self._probed(costs)

    def _probed(self, costs: _Costs) -> None:
        """One more step of the way that is not the usual one was measured."""
        costs.probing = max(0, costs.probing - 1)
        if costs.more_s.count >= _PROBES:
            self._decide(costs)

    def _decide(self, costs: _Costs) -> None:
        """Work out anew what to do; where it is no longer the same, probes begin from the start."""
        best = self._best(costs)
        if (best > 0) != (costs.best > 0):
            costs.since_probe, costs.probing, costs.patience = 0, 0, 1
        costs.best = best

    def _probe_size(self) -> int:
        return min(2, self._most)

    def _best(self, costs: _Costs) -> int:
        """How many guesses make the most tokens a second; 0 unless they make clearly more than none does."""
        rates = [self._tokens_per_s(costs, drafts) for drafts in range(self._most + 1)]
        best = max(range(self._most + 1), key=rates.__getitem__)
        return best if rates[best] > _MARGIN * rates[0] else 0

    def _tokens_per_s(self, costs: _Costs, drafts: int) -> float:
        """Of each sequence, as predicted: 1 + a + a² + … + a^drafts tokens a step (Leviathan et al., equation 1)."""
        tokens = sum(self.acceptance**count for count in range(drafts + 1))
        more_s = max(0.0, costs.more_s.value)
        return tokens / max(1e-9, costs.plain_s.value + drafts * (costs.draft_s.value + more_s))
