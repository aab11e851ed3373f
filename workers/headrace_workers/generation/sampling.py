"""Logits to tokens: each by its own rules, and by a number that depends on nothing but the job.

A token is drawn by one uniform number, a hash of (seed, choice, position in the answer). So the same job gives the same
tokens alone, in company, and when another replica goes on with it. For that a row is never computed together with
others: what a sum rounds to would depend on how many there are.

The order is: penalties, constraint, temperature, `top_k`, `top_p`, `min_p`. Penalties look at generated tokens only.
`top_p` is the share of what `top_k` left (Holtzman et al., 2020), `min_p` a share of the most probable token (Nguyen et
al., 2024). Log-probabilities are the model's own, before any of this.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import GenerationParams
from headrace_workers.generation.text import TokenSpelling

if TYPE_CHECKING:
    from headrace_workers.generation.constraint import Constraint

__all__ = ["Draw", "Drawn", "Sampler", "seed_of", "uniform"]

_GREEDY_BELOW: Final = 1e-5
"""Temperatures below draw the most probable token anyway, but for the rounding."""
_COLUMNS: Final = 256
_NUCLEUS_FLOORS: Final = (1e-3, 1e-5, 0.0)
"""Shares of probability from which a `top_p` nucleus is looked for, until what is above one holds enough."""

Row = NDArray[np.float32]
Ids = NDArray[np.intp]


def seed_of(job_id: str) -> int:
    """The seed of a job that names none."""
    (seed,) = struct.unpack("<q", hashlib.blake2b(job_id.encode(), digest_size=8, person=b"headrace seed").digest())
    return int(seed)


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), uniform over its arguments: BLAKE2b of them, the same on every machine and for ever.

    Args:
        seed: the job's, a 64-bit integer.
        choice: which of the job's answers.
        position: how many tokens of the answer come before.
    """
    counter = struct.pack("<qQQ", seed, choice, position)
    digest = hashlib.blake2b(counter, digest_size=8, person=b"headrace draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class Drawn(NamedTuple):
    """A token that was drawn."""

    token: int
    logprobs: dict[str, Any] | None = None
    """As OpenAI's API has it (`token`, `logprob`, `bytes`, `top_logprobs`), if it was asked for."""


class Draw:
    """How the tokens of one answer are drawn, and what of the answer that depends on.

    Args:
        params: the job's.
        job_id: what seeds it, unless `params` name a seed.
        choice: which of the job's answers it is.
        constraint: its compiled `response_format`; a copy is taken.
    """

    __slots__ = ("_counts", "choice", "constraint", "greedy", "params", "plain", "position", "seed")

    def __init__(
        self, params: GenerationParams, *, job_id: str, choice: int = 0, constraint: Constraint | None = None
    ) -> None:
        self.params = params
        self.seed = seed_of(job_id) if params.seed is None else params.seed
        self.choice = choice
        self.constraint = constraint.copy() if constraint is not None else None
        self.position = 0
        """How many tokens the answer has."""
        self.greedy = params.temperature < _GREEDY_BELOW
        penalized = bool(params.frequency_penalty or params.presence_penalty)
        self.plain = not penalized and constraint is None
        """Whether its logits are those of the model."""
        self._counts: Counter[int] | None = Counter() if penalized else None

    def advance(self, token: int) -> None:
        """Append a token, whoever drew it.

        Raises:
            ItemError: the constraint does not allow it.
        """
        self.position += 1
        if self._counts is not None:
            self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.advance(token)

    @property
    def finished(self) -> bool:
        """Whether its constraint allows nothing more."""
        return self.constraint is not None and self.constraint.ended

    def change(self, logits: Row) -> None:
        """Apply penalties and the constraint, in place.

        Raises:
            ItemError: the constraint has become too complex to follow.
        """
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[ids] -= counts * np.float32(self.params.frequency_penalty) + np.float32(self.params.presence_penalty)
        if self.constraint is not None:
            self.constraint.apply(logits)

    def uniform(self) -> float:
        """The number that its next token is drawn by."""
        return uniform(self.seed, self.choice, self.position)


class Sampler:
    """Draws tokens. Used from one thread.

    Args:
        vocabulary: how many logits a row has.
        spelling: what tokens are called in `logprobs`.
    """

    def __init__(self, vocabulary: int, spelling: TokenSpelling) -> None:
        self._spelling = spelling
        self._weights = _Weights(vocabulary)
        self._changed = np.empty(vocabulary, np.float32)

    def draw(self, logits: Tensor, draws: Sequence[Draw], best: Sequence[int] | None = None) -> list[Drawn | ItemError]:
        """Draw a token for each row and advance its `Draw`.

        Args:
            logits: float32 [rows, vocabulary], on any device; not changed.
            draws: one for each row.
            best: for each row, the first of its largest logits, or the first that is NaN, if somebody has looked.

        Returns:
            For each row what was drawn, or `NOT_FINITE` where its logits hold NaN or infinity.
        """
        if not logits.is_cpu and all(draw.greedy and draw.plain and not draw.params.logprobs for draw in draws):
            return self._greedy(logits, draws)
        rows = logits.cpu().numpy()
        if best is None:
            best = [int(row.argmax()) for row in rows]  # a third of the time of argmax(axis=1)
        return [self._drawn(row, top, draw) for row, top, draw in zip(rows, best, draws, strict=True)]

    def _greedy(self, logits: Tensor, draws: Sequence[Draw]) -> list[Drawn | ItemError]:
        """On a GPU: two numbers a row are fetched, not the row."""
        values, ids = logits.max(dim=1)
        pairs = zip(values.tolist(), ids.tolist(), draws, strict=True)
        return [_advanced(draw, id) if np.isfinite(value) else _not_finite() for value, id, draw in pairs]

    def _drawn(self, row: Row, best: int, draw: Draw) -> Drawn | ItemError:
        if not np.isfinite(row[best]):
            return _not_finite()
        try:
            token = self._token(row, best, draw)
            logprobs = self._logprobs(row, best, token, draw.params.top_logprobs) if draw.params.logprobs else None
            return _advanced(draw, token, logprobs)
        except ItemError as error:
            return error

    def _token(self, row: Row, best: int, draw: Draw) -> int:
        if not draw.plain:
            np.copyto(self._changed, row)
            row = self._changed
            draw.change(row)
            best = int(row.argmax())
            if row[best] == -np.inf:
                raise _not_finite()
        if draw.greedy:
            return best
        params = draw.params
        weights, total = self._weights.of(row, row[best], params.temperature)
        if params.top_k is None and params.top_p == 1.0 and params.min_p == 0.0:
            return self._weights.at(draw.uniform())
        ids, cumulative = self._candidates(weights, total, params)
        return int(ids[_at(cumulative, draw.uniform())])

    def _candidates(self, weights: Row, total: float, params: GenerationParams) -> tuple[Ids, NDArray[np.float64]]:
        """The tokens that are left, the most probable first, and the cumulative sum of their weights."""
        if params.top_k is not None:
            ids = self._weights.largest(params.top_k)
        elif params.top_p < 1.0:
            ids = _nucleus(weights, total, params.top_p)
        else:
            ids = _in_order(weights, np.flatnonzero(weights >= np.float32(params.min_p)))
        cumulative = np.cumsum(weights[ids], dtype=np.float64)
        kept = len(ids)
        if params.top_p < 1.0:
            whole = float(cumulative[-1]) if params.top_k is not None else total
            kept = min(kept, int(cumulative.searchsorted(params.top_p * whole)) + 1)
        if params.min_p > 0.0:
            kept = min(kept, int(np.count_nonzero(weights[ids] >= np.float32(params.min_p))))
        return ids[:kept], cumulative[:kept]

    def _logprobs(self, row: Row, best: int, token: int, count: int) -> dict[str, Any]:
        _, total = self._weights.of(row, row[best], 1.0)
        whole = float(row[best]) + float(np.log(total))
        entries = [self._entry(int(id), float(row[id]) - whole) for id in (token, *self._weights.largest(count))]
        return {**entries[0], "top_logprobs": entries[1:]}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self._spelling.literally(token)
        return {"token": spelled.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(spelled)}


class _Weights:
    """The probabilities of one row after the other, times a number: the largest is 1.

    They lie in a table, the last places of which are 0, and are summed by column: so no sum depends on anything but the
    row, and one number finds a token by way of 256 columns.
    """

    def __init__(self, vocabulary: int) -> None:
        lines = -(-vocabulary // _COLUMNS)
        padded = np.zeros(lines * _COLUMNS, np.float32)
        self._row = padded[:vocabulary]
        self._table = padded.reshape(lines, _COLUMNS)
        self._sums = np.empty(_COLUMNS, np.float32)
        self._cumulative = np.empty(_COLUMNS, np.float64)

    def of(self, logits: Row, largest: np.float32, temperature: float) -> tuple[Row, float]:
        """[vocabulary] of exp((logits - largest) / temperature), valid until the next call, and their sum."""
        with np.errstate(over="ignore"):  # models that mask by the least float32
            np.subtract(logits, largest, out=self._row)
            if temperature != 1.0:
                self._row *= np.float32(1.0 / temperature)
        np.exp(self._row, out=self._row)  # not torch's, which wakes other threads for a single row
        np.add.reduce(self._table, axis=0, out=self._sums)
        np.cumsum(self._sums, dtype=np.float64, out=self._cumulative)
        return self._row, float(self._cumulative[-1])

    def at(self, share: float) -> int:
        """The token at which the cumulative probability passes `share`, column by column."""
        column = _at(self._cumulative, share)
        before = self._cumulative[column - 1] if column else 0.0
        inside = self._table[:, column].cumsum(dtype=np.float64)
        rest = (share * self._cumulative[-1] - before) / (self._cumulative[column] - before)
        return _at(inside, float(rest)) * _COLUMNS + column

    def largest(self, count: int) -> Ids:
        """The tokens with the largest weights, largest first; of equals the lower is first."""
        if count == 0:
            return np.empty(0, np.intp)
        # As many columns as tokens are asked for have a largest weight of at least this, so no less is among them.
        tops = self._table.max(axis=0) if count <= _COLUMNS else self._row
        rest = max(len(tops) - count, 0)
        return _in_order(self._row, np.flatnonzero(self._row >= np.partition(tops, rest)[rest]))[:count]


def _at(cumulative: NDArray[np.float64], share: float) -> int:
    """Where a cumulative sum passes a share of itself, which is never at an element that adds nothing."""
    at = int(cumulative.searchsorted(share * float(cumulative[-1]), side="right"))
    return at if at < len(cumulative) else int(cumulative.searchsorted(float(cumulative[-1])))


def _nucleus(weights: Row, total: float, share: float) -> Ids:
    """At least the most probable tokens that make up a share of all."""
    for floor in _NUCLEUS_FLOORS:
        ids = np.flatnonzero(weights > floor * total)
        if float(weights[ids].sum(dtype=np.float64)) >= share * total:
            break
    return _in_order(weights, ids)


def _in_order(weights: Row, ids: Ids) -> Ids:
    """Sorted by one key, of a weight's bits, which rise with it, and the index."""
    bits = np.uint64(0xFFFF_FFFF) - weights[ids].view(np.uint32)
    keys = (bits << np.uint64(32)) | ids.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFF_FFFF)).astype(np.intp)


def _advanced(draw: Draw, token: int, logprobs: dict[str, Any] | None = None) -> Drawn:
    draw.advance(token)
    return Drawn(token, logprobs)


def _not_finite() -> ItemError:
    return ItemError(
        FailureCode.NOT_FINITE,
        "the model answered with NaN or infinity",
        hint="another prompt; or another precision, if it happens often",
    )
