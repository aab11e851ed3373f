"""Sending a batch to the very replica it was formed for.

Serve's own request routers pick a replica per call and back off when they guess wrong. Our router counts the
slots of every replica itself and calls only when one is free, so all it needs of Serve is to be told which
replicas there are, and to have a call go where it says. `DirectRouter` is that request router; Serve makes
one for each deployment in every process that holds a handle.
"""

from __future__ import annotations

from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from headrace_cluster.pools.replicas import replicas_of

__all__ = ["DirectRouter"]


class DirectRouter(RequestRouter):  # type: ignore[misc]
    """Routes a call to the replica that its first argument names, if it is still there."""

    @property
    def supports_rejection_protocol(self) -> bool:
        """Replicas never have to refuse: whoever calls knows their free slots."""
        return False

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's word on which replicas there are."""
        super().update_replicas(replicas)
        self._announce()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call found the replica dead before Serve's controller did."""
        super().on_replica_actor_died(replica_id)
        self._announce()

    def _announce(self) -> None:
        deployment = self._deployment_id
        names = [replica_id.unique_id for replica_id in self.curr_replicas]
        replicas_of(deployment.app_name, deployment.name).set(names)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """The replica that the call's first argument names.

        Serve's experimental capacity router overrides the same method: it is where a router that knows
        the capacities leaves out the queue, the probes and the back-off.
        """
        if is_retry:  # it did not answer a moment ago: asking again at once would spin; our router decides
            raise ReplicaUnavailableError(pending_request.args[0])
        for replica_id, replica in self.curr_replicas.items():
            if replica_id.unique_id == pending_request.args[0]:
                return replica
        raise ReplicaUnavailableError(pending_request.args[0])

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The abstract class asks for it; nothing calls it."""
        return [candidate_replicas]
