"""Targets: what a search shall reach, in the words that a person types: `speed>=4x, drop<=1%`.

Everything is relative to the model as it came, measured on the same node and the same data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from headrace.errors import RecipeError
from headrace_workers.compression.recipe import Gates

__all__ = ["QUANTITIES", "Condition", "Quantity", "Shortfall", "Target", "parse_target"]

Bound = Literal[">=", "<="]
Unit = Literal["x", "%", ""]


class Quantity(NamedTuple):
    """Something that a target can ask for."""

    bound: Bound
    units: tuple[Unit, ...]
    """The units that it may be given in; the first is the one it is shown in."""
    least: float
    most: float
    gate: str
    """The gate of a recipe that asks for the same."""
    example: str


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "speed": Quantity(">=", ("x",), 0.01, 1e6, "min_speedup", "speed>=4x"),
    "drop": Quantity("<=", ("%",), 0, 1, "max_metric_drop", "drop<=1%"),
    "size": Quantity("<=", ("%", "x"), 1e-6, 100, "max_size_ratio", "size<=25%"),
    "cosine": Quantity(">=", ("", "%"), 0, 1, "min_cosine_mean", "cosine>=0.99"),
    "agreement": Quantity(">=", ("%", ""), 0, 1, "min_agreement", "agreement>=98%"),
    "kl": Quantity("<=", ("",), 0, 1e6, "max_kl", "kl<=0.05"),
    "perplexity": Quantity("<=", ("x", "%"), 1, 1e6, "max_perplexity_ratio", "perplexity<=1.02x"),
}
"""By the name it has in a target. `drop` is relative, of the task's metric; `size` and `perplexity` are ratios."""

_CONDITION: Final = re.compile(r"\s*([A-Za-z_]+)\s*(>=|<=|≥|≤|=>|=<|==|=|>|<)\s*([0-9.eE+-]+)\s*([x×%]?)\s*")
_BOUNDS: Final[Mapping[str, Bound]] = {">=": ">=", "≥": ">=", "<=": "<=", "≤": "<="}
_LONGEST: Final = 1000
_ALL_DIGITS: Final = 10
"""That a person would give, and without the noise of binary fractions."""


@dataclass(frozen=True)
class Condition:
    """One thing that shall hold."""

    name: str
    """A key of `QUANTITIES`."""
    limit: float
    """As a ratio or a share: 4x is 4, 1% is 0.01."""

    @property
    def quantity(self) -> Quantity:
        """What it is about."""
        return QUANTITIES[self.name]

    def shortfall(self, value: float | None) -> float:
        """By how much of the limit a value misses it; 0 if it holds, infinite if nothing was measured.

        A limit of 0 counts as one of a hundredth, since there is nothing to be a share of.
        """
        if value is None or value != value:
            return float("inf")
        missing = self.limit - value if self.quantity.bound == ">=" else value - self.limit
        return max(0.0, missing) / max(abs(self.limit), 0.01)

    def shown(self, value: float, digits: int = 4) -> str:
        """A value in this condition's unit."""
        unit = self.quantity.units[0]
        return f"{value * 100 if unit == '%' else value:.{digits}g}{unit}"

    def __str__(self) -> str:
        return f"{self.name}{self.quantity.bound}{self.shown(self.limit, _ALL_DIGITS)}"


class Shortfall(NamedTuple):
    """A condition that does not hold."""

    condition: Condition
    value: float | None
    """What was measured, if anything was."""

    def __str__(self) -> str:
        name = self.condition.name
        if self.value is None or self.value != self.value:
            return f"{name} was not measured, and {self.condition} is asked for"
        by = self.condition.shown(abs(self.value - self.condition.limit))
        return f"{name} is {self.condition.shown(self.value)}, {by} away from {self.condition}"


@dataclass(frozen=True)
class Target:
    """All that shall hold at once."""

    conditions: tuple[Condition, ...]

    def shortfalls(self, figures: Mapping[str, float]) -> list[Shortfall]:
        """The conditions that figures do not meet.

        Args:
            figures: by the names of `QUANTITIES`.
        """
        measured = [(condition, figures.get(condition.name)) for condition in self.conditions]
        return [Shortfall(condition, value) for condition, value in measured if condition.shortfall(value) > 0]

    def missing(self, figures: Mapping[str, float]) -> float:
        """The sum of all shortfalls, each as a share of its limit: 0 where the target is met."""
        return sum(condition.shortfall(figures.get(condition.name)) for condition in self.conditions)

    def limit(self, name: str) -> float | None:
        """What is asked of a quantity, if anything is."""
        return next((condition.limit for condition in self.conditions if condition.name == name), None)

    def gates(self) -> Gates:
        """The same as the gates of a recipe."""
        return Gates.model_validate({condition.quantity.gate: condition.limit for condition in self.conditions})

    def __str__(self) -> str:
        return ", ".join(map(str, self.conditions))


def parse_target(text: str) -> Target:
    """Read a target.

    Args:
        text: conditions, separated by commas: `speed>=4x, drop<=1%, size<=25%`.

    Raises:
        RecipeError: it says something that is not understood; the message names the place and what would be right.
    """
    if len(text) > _LONGEST:
        raise RecipeError(f"a target of {len(text):,} characters is longer than one can be ({_LONGEST:,})")
    conditions: list[Condition] = []
    place = 1
    for part in text.split(","):
        condition = _condition(part, place + len(part) - len(part.lstrip()))
        if any(condition.name == other.name for other in conditions):
            raise _error(place, f"{condition.name} is asked for twice; once is enough")
        conditions.append(condition)
        place += len(part) + 1
    return Target(tuple(conditions))


def _condition(part: str, place: int) -> Condition:
    match = _CONDITION.fullmatch(part)
    if match is None:
        raise _error(place, f"{part.strip()!r} is no condition; one is like {_examples()}")
    name, bound, number, unit = match.groups()
    quantity = QUANTITIES.get(name.lower())
    if quantity is None:
        raise _error(place, f"there is no {name!r} to ask for; there is {', '.join(QUANTITIES)}")
    if _BOUNDS.get(bound) != quantity.bound:
        raise _error(place, f"{name} goes with {quantity.bound}, not {bound}: {quantity.example}")
    return Condition(name.lower(), _limit(number, unit.replace("×", "x"), quantity, place))


def _limit(number: str, unit: str, quantity: Quantity, place: int) -> float:
    try:
        value = float(number)
    except ValueError:
        raise _error(place, f"{number!r} is no number: {quantity.example}") from None
    if unit not in quantity.units:
        given = f"in {unit!r}" if unit else "without a unit"
        raise _error(place, f"{number} {given} could mean anything here; write it as in {quantity.example}")
    value = value / 100 if unit == "%" else value
    if not quantity.least <= value <= quantity.most:
        raise _error(place, f"{number}{unit} is out of range; it goes from {quantity.least:g} to {quantity.most:g}")
    return value


def _error(place: int, problem: str) -> RecipeError:
    return RecipeError(f"target, character {place}: {problem}")


def _examples() -> str:
    return ", ".join(quantity.example for quantity in QUANTITIES.values())
