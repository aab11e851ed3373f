"""What is said of the variants of a model that adapts to its load."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from headrace_cluster.config.strict import StrictConfig
from headrace_workers.variants.choice import WantedVariant

__all__ = ["AdaptiveConfig", "VariantConfig"]


class VariantConfig(StrictConfig):
    """A variant that a model may run. In place of the map its name alone will do."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """As the artifact names it."""
    quality: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """How good its answers are, in any unit in which more is better; unset: as measured when it was compressed."""
    speed: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """How fast it is, likewise."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_will_do(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class AdaptiveConfig(StrictConfig):
    """When a model's pools take a faster variant: under overload that no further replica can relieve."""

    variants: tuple[VariantConfig, ...] = ()
    """From the best to the fastest; empty: those of the artifact that no other one beats in quality and speed."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.97
    """The least quality, as a share of the best variant's. No load makes a pool go below."""
    step_after_s: Annotated[float, Field(ge=1, le=86_400)] = 15.0
    """How long what waits must have needed more than `scaling.drain_s` before the next faster variant is taken."""
    back_after_s: Annotated[float, Field(ge=1, le=604_800)] = 120.0
    """How long the better variant must have been fast enough before it is taken again; longer each time that turns out
    to be too soon."""

    @model_validator(mode="after")
    def _there_is_something_to_choose(self) -> AdaptiveConfig:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants: one is named twice: {', '.join(sorted(names))}")
        if len(names) == 1:
            raise ValueError(
                "variants: name two at least, from the best to the fastest; or none, for the artifact's own"
            )
        return self

    @property
    def wanted(self) -> tuple[WantedVariant, ...]:
        """What a replica is given."""
        return tuple(WantedVariant(variant.name, variant.quality, variant.speed) for variant in self.variants)
