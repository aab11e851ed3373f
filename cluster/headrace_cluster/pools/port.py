"""What a router needs of a pool, whether Serve's actors or a test's plain objects stand behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from headrace.errors import HeadraceError

__all__ = ["BatchFailedError", "PoolPort", "ReplicaLostError"]


class ReplicaLostError(HeadraceError):
    """The replica died, or cannot be reached.

    Args:
        message: what is known.
        reached: whether the batch may have run there; False if it was never sent.
    """

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class BatchFailedError(HeadraceError):
    """The replica lives, and its `run` raised."""


class PoolPort(Protocol):
    """The replicas of one pool."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` on the router's event loop, now and whenever the set of replicas changes."""
        ...

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Have a replica run a packed `Batch`; returns the packed `BatchOutcome`.

        Raises:
            ReplicaLostError, BatchFailedError.
        """
        ...

    def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Have a replica run a packed `Batch` whose jobs end one by one; yields packed `JobOutcomes`.

        Raises:
            ReplicaLostError, BatchFailedError.
        """
        ...

    async def kill(self, replica: str) -> None:
        """End a replica that hangs, at once; another takes its place. Calls that it has fail."""
        ...
