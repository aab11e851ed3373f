"""A router replica that a test can break from within, and that counts how often Serve asks for its health."""

from __future__ import annotations

from typing import Any

from headrace_cluster.app import RouterReplica

__all__ = ["BreakableRouter"]


class BreakableRouter(RouterReplica):
    """The real one, with two doors for tests."""

    _health_checks = 0

    async def check_health(self) -> None:
        self._health_checks += 1
        await super().check_health()

    async def health_checks(self) -> int:
        """How often Serve has asked."""
        return self._health_checks

    async def break_down(self, model: str) -> None:
        """Let one of the tasks of a model's router fail, as a mistake in its code would."""

        async def fail() -> Any:
            raise LookupError("something that cannot be")

        self._routers[model]._spawn(fail())
