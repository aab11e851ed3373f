"""A replica whose variant others choose: what it may run, and the task that follows what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from headrace.messages.rungs import Rung
from headrace.tasks import end_task
from headrace_workers import node
from headrace_workers.engines.base import Engine
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.models.source import find_source
from headrace_workers.variants.choice import WantedVariant, loading_bytes, rungs_of
from headrace_workers.variants.switch import Switchable, VariantSwitch

__all__ = ["AdaptiveModel"]

Device = Literal["cpu", "cuda"]


class AdaptiveModel:
    """A model of which a replica runs now this variant, now that.

    Args:
        engine: which model, and how it is run.
        wanted: which of its variants; none: those that its artifact recommends.
        device: where.

    Raises:
        ModelLoadError: there is nothing to choose between.
        ArtifactError: the artifact is broken, or has no variant of a name that is wanted.
    """

    def __init__(self, engine: EngineConfig, wanted: Sequence[WantedVariant], device: Device) -> None:
        self._engine = engine
        self._device = device
        self._source = find_source(engine.model)
        self.rungs: tuple[Rung, ...] = rungs_of(self._source, wanted, device=device, flags=node.capabilities().flags)
        self._switch: VariantSwitch | None = None
        self._following: asyncio.Task[None] | None = None

    def make(self, variant: str | None = None) -> Engine:
        """The engine of a variant; None: of the best."""
        name = variant or self.rungs[0].variant
        config = self._engine.model_copy(update={"variant": name, "precision": self._precision(name)})
        return make_engine(config, device=self._device)

    def _precision(self, variant: str) -> str:
        """What a variant computes in: one that is compressed has no choice; one that is stored plain is taken in fp32
        if nothing is said. By default it would be quantized as it is loaded, and be no other than the one that is."""
        assert self._source.artifact is not None, "rungs_of has seen to that"
        if self._source.artifact.variant(variant).layers:
            return "int8"
        return self._engine.precision if "precision" in self._engine.model_fields_set else "fp32"

    def keep_following(self, replica: Switchable, *, model: str, pool: str, redis_url: str) -> None:
        """Have a replica that runs the best variant follow what it is told, from the first call on; on its event loop.

        Raises:
            EngineLostError: the replica has no engine any more, and is of no use.
        """
        if self._following is None:
            self._switch = VariantSwitch(
                replica,
                model=model,
                pool=pool,
                redis_url=redis_url,
                rungs=self.rungs,
                make=self.make,
                needed_bytes=lambda variant: loading_bytes(
                    self._source, variant, cache_bytes=int(replica.engines.info.details.get("kv_cache_bytes", 0))
                ),
                free_bytes=_free_bytes_of(self._device),
            )
            self._following = asyncio.create_task(self._switch.run(), name=f"variant-{model}@{pool}")
        elif self._following.done():
            self._following.result()

    async def close(self) -> None:
        """Follow no more."""
        if self._following is not None and self._switch is not None:
            await end_task(self._following)
            await self._switch.close()


def _free_bytes_of(device: Device) -> Callable[[], int]:
    if device == "cpu":
        return node.available_memory_bytes

    def free_bytes() -> int:
        import torch

        return min(node.available_memory_bytes(), int(torch.cuda.mem_get_info()[0]))

    return free_bytes
