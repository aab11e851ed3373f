"""Putting a configuration together from its layers: file, environment, command line.

Each value remembers who said it, so that an error names the file, the variable or the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from headrace.errors import ConfigError
from headrace_cluster.config.errors import describe, nearest

__all__ = ["PREFIX", "ConfigSources"]

PREFIX: Final = "HEADRACE_"
_OTHER_VARIABLES: Final = frozenset({"HEADRACE_ISA", "HEADRACE_NATIVE"})
"""Variables of ours that are not keys of the configuration."""
_KUBERNETES: Final = re.compile(r"_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?$")
"""What Kubernetes tells every pod of a Service whose name begins with `headrace`."""

_Path = tuple[str | int, ...]


class ConfigSources:
    """The layers laid over each other: maps are merged, whatever else is replaced.

    Args:
        keys: the keys of the topmost level.
        origin: what to call the source of what nobody said.
    """

    def __init__(self, keys: Sequence[str], origin: str) -> None:
        self._keys = keys
        self._origins: dict[_Path, str] = {(): origin}
        self.content: dict[str, Any] = {}

    def add(self, layer: Mapping[str, Any], origin: str) -> None:
        """Lay a map over what is there."""
        for name, value in layer.items():
            self._set((name,), value, origin)

    def add_environment(self) -> None:
        """Lay the environment over it: `HEADRACE_ROUTER__REPLICAS=2` is the key `replicas` in `router`.

        Raises:
            ConfigError: a variable names no key.
        """
        variables = {name: text for name, text in os.environ.items() if text and _is_setting(name)}
        # Whole maps before what stands in them.
        for name in sorted(variables, key=lambda name: (name.count("__"), name)):
            self._set(self._path_of(name), _value_of(variables[name]), f"environment: {name}")

    def _path_of(self, variable: str) -> _Path:
        first, *rest = variable.removeprefix(PREFIX).split("__")
        if first.lower() not in self._keys:
            known = nearest(first.upper(), [key.upper() for key in self._keys], prefix=PREFIX)
            raise ConfigError(f"environment: {variable} is no setting; {known}")
        path: _Path = (first.lower(),)
        for word in rest:
            path = (*path, _step(self._at(path), word))
        return path

    def _at(self, path: _Path) -> Any:
        """What stands there now; None where nothing does."""
        node: Any = self.content
        for step in path:
            if not _leads_on(node, step):
                return None
            node = node.get(step) if isinstance(node, dict) else node[step]
        return node

    def _set(self, path: _Path, value: Any, origin: str) -> None:
        if isinstance(value, Mapping):
            below = self._at(path)
            if not isinstance(below, dict):
                self._replace(path, {}, origin)
            for name, part in value.items():
                self._set((*path, name), part, origin)
        else:
            self._replace(path, value, origin)

    def _replace(self, path: _Path, value: Any, origin: str) -> None:
        *parents, last = path
        for depth in range(len(parents)):
            if self._at(path[: depth + 1]) is None:
                self._replace(path[: depth + 1], {}, origin)
        node = self._at(tuple(parents))
        if not _leads_on(node, last):
            raise ConfigError(f"{origin}: there is no {last!r} in {'.'.join(map(str, parents))}")
        node[last] = value
        self._origins[path] = origin

    def explain(self, error: ValidationError, schema: type) -> ConfigError:
        """Every key that is wrong, each under the source that said it; never a value."""
        by_origin: dict[str, list[str]] = {}
        for place, words in describe(error, schema):
            by_origin.setdefault(self._origin_of(place), []).append(words)
        return ConfigError("; ".join(f"{origin}: {', '.join(words)}" for origin, words in by_origin.items()))

    def _origin_of(self, place: _Path) -> str:
        return next(self._origins[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self._origins)


def _is_setting(variable: str) -> bool:
    return variable.startswith(PREFIX) and variable not in _OTHER_VARIABLES and not _KUBERNETES.search(variable)


def _value_of(text: str) -> Any:
    """JSON where it is JSON (numbers, true, lists, maps), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _step(node: Any, word: str) -> str | int:
    """The key that a part of a variable's name means: an index, a name that is there, or a new one.

    Names of variables know neither lower case nor `-` nor `.`, which names of models may hold.
    """
    if isinstance(node, list):
        return int(word) if word.isdecimal() else word
    names = node if isinstance(node, dict) else ()
    return next((name for name in names if _as_variable(name) == word.upper()), word.lower())


def _as_variable(name: str) -> str:
    return re.sub(r"[-.]", "_", name).upper()


def _leads_on(node: Any, step: str | int) -> bool:
    """Whether there may be something of that name in there."""
    return isinstance(node, dict) or (isinstance(node, list) and isinstance(step, int) and step < len(node))
