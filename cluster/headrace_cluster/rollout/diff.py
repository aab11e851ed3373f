"""What a new configuration changes in a running service, and what each change takes. Pure.

What the routers need not know is left out of what they are made with (`routers_part`), so that changing it leaves
them where they are; whoever tells people what a change takes, and who brings it about, go by the same list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from headrace.models.shards import shard_names
from headrace_cluster.config.settings import ServiceConfig

__all__ = ["Change", "ConfigDiff", "Effect", "diff_of", "routers_part"]

Path = tuple[str, ...]


class Effect(StrEnum):
    """What a change takes."""

    ADDED = "added"
    """A model or pool comes to be."""
    REMOVED = "removed"
    """A model or pool ends."""
    REPLICAS = "new replicas"
    """The processes of a pool are exchanged, and the routers with them."""
    ROUTERS = "new routers"
    """Only the routers are exchanged. Replicas that models share take over in place what is another model now."""
    IN_PLACE = "in place"
    """Nothing is exchanged; numbers of replicas grow or shrink."""


_IN_PLACE: Final = (
    r"models/[^/]+/(limits|scaling)(/.*)?",
    r"(models/[^/]+/pools|shared_pools)/[^/]+/(replicas|min_replicas|max_replicas|update)",
    r"router/replicas",
    r"autoscaling(/.*)?",
)
_REPLICAS: Final = (
    r"(redis|metrics|tracing|logs)(/.*)?",
    r"models/[^/]+/(engine|adaptive)(/.*)?",
    r"(models/[^/]+/pools|shared_pools)/[^/]+/(cpus|gpus|labels|memory_bytes)(/.*)?",
)
_ENTITY: Final = r"models/[^/]+(/pools/[^/]+)?|shared_pools/[^/]+"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that is different."""

    path: str
    """Where, as in `models.minilm.pools.cpu.replicas`."""
    old: Any
    """None: it was not there."""
    new: Any
    """None: it is not there any more."""
    effect: Effect


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """All that is different, in the order of the paths."""

    changes: tuple[Change, ...]
    removed: tuple[str, ...] = ()
    """Names that are hosted no more: of models, or of shards of a model that has fewer of them."""

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def in_place(self) -> bool:
        """Whether the routers stay."""
        return all(change.effect is Effect.IN_PLACE for change in self.changes)


def diff_of(old: ServiceConfig, new: ServiceConfig) -> ConfigDiff:
    """What `new` changes in a service that runs `old`. Passwords are neither compared nor shown."""
    before, after = _keyed(old), _keyed(new)
    shared = _sharing(old) & _sharing(new)
    changes = tuple(_changes((), before, after, shared))
    return ConfigDiff(changes, tuple(sorted(_hosted(old) - _hosted(new))))


def routers_part(config: ServiceConfig) -> dict[str, Any]:
    """What of a configuration the routers are made with."""
    part: dict[str, Any] = _without_in_place((), _keyed(config))
    return part


def _sharing(config: ServiceConfig) -> set[str]:
    """Models that have no replicas of their own."""
    return {model for model, hosted in config.models.items() if hosted.shared_pool is not None}


def _hosted(config: ServiceConfig) -> set[str]:
    return {name for model, hosted in config.models.items() for name in shard_names(model, hosted.shards)}


def _keyed(config: ServiceConfig) -> dict[str, Any]:
    """The configuration with defaults filled in, and pools by their names."""
    plain = config.model_dump(mode="json", exclude={"redis_url"})
    for hosted in plain["models"].values():
        hosted["pools"] = {pool.get("shared") or pool["name"]: pool for pool in hosted["pools"]}
    return plain


def _without_in_place(path: Path, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {name: (*path, name) for name in value}
    return {name: _without_in_place(at, value[name]) for name, at in inner.items() if not _is(_IN_PLACE, at)}


def _is(patterns: tuple[str, ...], path: Path) -> bool:
    text = "/".join(path)
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def _changes(path: Path, old: Any, new: Any, shared: Collection[str]) -> Iterator[Change]:
    """Every value that is different. A model or a pool that comes or goes is one change, not one for each value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _changes((*path, name), old.get(name), new.get(name), shared)
    elif old != new:
        yield Change(".".join(path), _summary(old), _summary(new), _effect(path, old, new, shared))


def _effect(path: Path, old: Any, new: Any, shared: Collection[str]) -> Effect:
    if re.fullmatch(_ENTITY, "/".join(path)):
        return Effect.ADDED if old is None else Effect.REMOVED if new is None else Effect.REPLICAS
    if _is(_IN_PLACE, path):
        return Effect.IN_PLACE
    replicas_of_its_own = not (path[0] == "models" and path[1] in shared)
    return Effect.REPLICAS if _is(_REPLICAS, path) and replicas_of_its_own else Effect.ROUTERS


def _summary(value: Any) -> Any:
    """A model or a pool by what tells most of it."""
    if not isinstance(value, dict):
        return value
    if "engine" in value:
        return f"{value['engine']['kind']} in {', '.join(sorted(value['pools']))}"
    return {name: item for name, item in value.items() if item not in (None, {}, [])}
