"""Which replicas a deployment has, as this process was last told.

Serve tells `DirectRouter`; the router's slots are counted from here. The registry is a module of its own
because Serve ships the request router's module by value, which would give each process a copy of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

__all__ = ["Replicas", "replicas_of"]

Listener = Callable[[frozenset[str]], None]


class Replicas:
    """The running replicas of one deployment, as Serve reports them to this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: frozenset[str] = frozenset()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` now and after each change, on whichever thread learns of it."""
        with self._lock:
            self._listeners.append(listener)
            names = self._names
        listener(names)

    def set(self, names: Iterable[str]) -> None:
        """Replace the set of replicas, and tell the listeners if it changed."""
        with self._lock:
            fresh = frozenset(names)
            if fresh == self._names:
                return
            self._names = fresh
            listeners = list(self._listeners)
        for listener in listeners:
            listener(fresh)


_replicas: dict[tuple[str, str], Replicas] = {}
_replicas_lock = threading.Lock()


def replicas_of(app: str, deployment: str) -> Replicas:
    """The one `Replicas` of a deployment in this process."""
    with _replicas_lock:
        return _replicas.setdefault((app, deployment), Replicas())
