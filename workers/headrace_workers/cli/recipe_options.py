"""What the command line knows of recipes: the names of ready ones, and values that replace those of a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from headrace.errors import RecipeError

__all__ = ["complete_recipe", "ready_names", "with_settings"]

_READY: Final = Path(__file__).parent.parent / "compression" / "recipes"
"""Found by path: completing a word must not wait until torch is imported."""


def ready_names() -> list[str]:
    """The names of the recipes that come with headrace."""
    return sorted(path.stem for path in _READY.glob("*.yaml"))


def complete_recipe(incomplete: str) -> list[str]:
    """For the shell: ready recipes whose names go on like this."""
    return [name for name in ready_names() if name.startswith(incomplete)]


def with_settings(content: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A recipe's plain data with other values in some places.

    Args:
        content: not changed.
        settings: `stages.0.training.steps=100`; the value is JSON, or else text.

    Raises:
        RecipeError: one of them is no setting, or names a place that cannot be.
    """
    changed: dict[str, Any] = copy.deepcopy(content)
    for setting in settings:
        place, equals, value = setting.partition("=")
        if not (place and equals):
            raise RecipeError(f"{setting!r} is no setting; write PLACE=VALUE, as in stages.0.training.steps=100")
        *path, last = place.split(".")
        inner = changed
        for step in path:
            inner = _child(inner, step, place)
        inner[_key(inner, last, place)] = _value(value)
    return changed


def _child(outer: Any, step: str, place: str) -> Any:
    key = _key(outer, step, place)
    if isinstance(outer, dict):
        return outer.setdefault(key, {})
    return outer[key]


def _key(outer: Any, step: str, place: str) -> Any:
    """How a list or map is asked for a step of a place."""
    if isinstance(outer, dict):
        return step
    if isinstance(outer, list) and step.isdecimal() and int(step) < len(outer):
        return int(step)
    known = f"0 to {len(outer) - 1}" if isinstance(outer, list) else "nothing in it"
    raise RecipeError(f"{place} names no place in the recipe: at {step!r} there is {known}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
