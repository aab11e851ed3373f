"""The thread that looks at Redis twice a second and decides; whoever asks gets the last decision at once.

There is one in Serve's controller for each application. The controller's own loop must never wait, so all I/O and all
arithmetic are here, and what goes from thread to thread is replaced as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import redis.asyncio

from headrace.errors import HeadraceError
from headrace.server.connection import commands
from headrace_cluster.autoscaling.autoscaler import STALE_S, Autoscaler, Decision
from headrace_cluster.autoscaling.backlog import BacklogReader
from headrace_cluster.autoscaling.decision_log import DecisionLog
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.placeable import Node, why_unplaceable
from headrace_cluster.autoscaling.plan import ScalingPlan
from headrace_cluster.autoscaling.start_up import StartUpTimes
from headrace_cluster.autoscaling.variant_steering import VariantSteering
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["Listener", "ScalingLoop"]

log = logging.getLogger("headrace.autoscaling")

EVERY_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
"""For one attempt to read the backlog."""
_NODES_EVERY_S: Final = 15.0
_FORGOTTEN_S: Final = 60.0
"""Nobody has asked for so long: the application is gone, or another has its name."""
_AGAIN_S: Final = 2.0
"""Between two attempts to begin, where even the address of Redis cannot be had."""

Listener = Callable[[Observation, Sequence[Decision]], None]
"""Is told of every round, on the loop's thread: metrics, say."""


class ScalingLoop:
    """Decides for the pools of one application, for as long as somebody asks.

    Args:
        plan: its models and pools.
        redis: where its backlog is.
        nodes: tells what the cluster's nodes have, in whatever time it takes; None: any pool can be placed.
        listener: is told of every round.
        every_s: seconds between two looks.
        forgotten_s: after how many seconds without a question its thread ends; the next question starts another.
    """

    def __init__(
        self,
        plan: ScalingPlan,
        redis: RedisAddress,
        *,
        nodes: Callable[[], Sequence[Node]] | None = None,
        listener: Listener | None = None,
        every_s: float = EVERY_S,
        forgotten_s: float = _FORGOTTEN_S,
    ) -> None:
        self._plan = plan
        self._redis = redis
        self._nodes = nodes
        self._listener = listener
        self._every_s = every_s
        self._forgotten_s = forgotten_s
        self._autoscaler = Autoscaler(plan)
        self._log = DecisionLog()
        self._starts = {pool.name: StartUpTimes(pool.start_up_s) for pool in plan.pools}
        self._counts: dict[str, tuple[int, int]] = {
            pool.name: (pool.min_replicas, pool.min_replicas) for pool in plan.pools if pool.fixed
        }
        self._models: Mapping[str, ModelLoad] = {}
        self._looked_s = float("-inf")
        self._unplaceable: Mapping[str, str] = {}
        self._nodes_due_s = float("-inf")
        self._decided: tuple[float, Mapping[str, int]] = (float("-inf"), {})
        self._asked_s = time.monotonic()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    # -- for whoever asks, on any thread ------------------------------------------------------------------

    def replicas(self, pool: str, *, running: int, target: int) -> int:
        """How many replicas a pool shall have that has so many, and was to have so many. Never waits.

        It is `target` again as long as nothing else has been decided.
        """
        now_s = self._asked_s = time.monotonic()
        self._starts[pool].note(now_s, running, target)
        self._counts[pool] = running, target
        if self._thread is None or not self._thread.is_alive():
            self._start()
        decided_s, replicas = self._decided
        return replicas.get(pool, target) if now_s - decided_s <= self._fresh_s else target

    @property
    def _fresh_s(self) -> float:
        return max(2.0, 4 * self._every_s)

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="headrace-autoscaling", daemon=True)
        self._thread.start()

    # -- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._look_and_decide())
        except Exception:  # a fault must not be silent; whoever asks next starts the thread again
            log.exception("autoscaling stopped, and is started again")
            self._stopping.wait(_AGAIN_S)

    async def _look_and_decide(self) -> None:
        client = commands(self._redis.resolve(), timeout_s=_TIMEOUT_S, retries=0)
        try:
            reader = BacklogReader(self._plan, client)
            steering = VariantSteering(self._plan)
            while not self._stopping.is_set() and time.monotonic() - self._asked_s < self._forgotten_s:
                began_s = time.monotonic()
                await self._look(reader)
                self._look_at_nodes()
                if (seen := self._decide(reader)) is not None:
                    await self._steer(steering, client, seen)
                await asyncio.sleep(max(0.0, began_s + self._every_s - time.monotonic()))
        finally:
            await client.aclose()

    async def _look(self, reader: BacklogReader) -> None:
        try:
            self._models = await reader.look(time.monotonic())
            self._looked_s = time.monotonic()
        except HeadraceError as error:
            self._log.trouble(time.monotonic(), f"the backlog cannot be read: {error}")

    def _look_at_nodes(self) -> None:
        now_s = time.monotonic()
        if self._nodes is None or now_s < self._nodes_due_s:
            return
        self._nodes_due_s = now_s + _NODES_EVERY_S
        try:
            nodes = self._nodes()
        except Exception as error:  # whatever the cluster's own client raises: its nodes are what they were
            self._log.trouble(now_s, f"the cluster's nodes cannot be read: {error}")
            return
        self._unplaceable = {
            pool.name: why_unplaceable(pool.cpus, pool.gpus, pool.labels, nodes) for pool in self._plan.pools
        }

    async def _steer(self, steering: VariantSteering, client: redis.asyncio.Redis, seen: Observation) -> None:
        now_s = time.monotonic()
        if now_s - seen.taken_s > STALE_S:
            return
        try:
            await steering.steer(client, now_s, seen)
        except HeadraceError as error:
            self._log.trouble(now_s, f"variants cannot be chosen: {error}")

    def _decide(self, reader: BacklogReader) -> Observation | None:
        now_s = time.monotonic()
        if self._looked_s == float("-inf"):
            return None  # nothing is known yet
        seen = Observation(self._looked_s, self._models, self._states(reader.costs))
        decisions = self._autoscaler.decide(now_s, seen)
        self._decided = now_s, {made.pool: made.replicas for made in decisions}
        self._log.note(now_s, decisions)
        if self._listener is not None:
            self._listener(seen, decisions)
        return seen

    def _states(self, costs: Mapping[str, Mapping[str, CostModel]]) -> dict[str, PoolState]:
        return {
            name: PoolState(
                running,
                target,
                self._starts[name].start_up_s,
                costs.get(name, {}),
                self._unplaceable.get(name, ""),
            )
            for name, (running, target) in list(self._counts.items())
        }
