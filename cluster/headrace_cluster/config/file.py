"""Reading a configuration from a file of YAML, with errors that name the line and never show it."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import yaml

from headrace.errors import ConfigError

__all__ = ["read_yaml"]

_KEY_TAGS: Final = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def read_yaml(file: Path) -> dict[str, Any]:
    """The map in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML or no map, or says a key twice.
    """
    try:
        content = _load(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not YAML: byte {error.start} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {_where(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must be a map with at least the key 'models'")
    return content


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML in which a key is text and stands once in its map; elsewhere the last one wins without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag not in _KEY_TAGS:
                raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} again", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _where(error: yaml.YAMLError) -> str:
    """The fault and its place; the line itself may hold a password."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return "it holds a character that may not stand there"
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
