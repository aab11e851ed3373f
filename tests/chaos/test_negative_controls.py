"""Builds that are broken on purpose: the checker has to find out each of them, and find nothing in the real one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from chaos.cluster import Topology
from chaos.orders import Traffic
from chaos.plan import FaultKind
from chaos.sabotage import SABOTAGES
from chaos.scenario import Scenario, run_scenario
from chaos.scenarios import PATIENT
from chaos.workload import Wish

SEED = 7


@dataclass(frozen=True)
class Control:
    """A sabotage, what brings it to light, and which promises are then seen to be broken."""

    broken: str
    seen: set[str]
    faults: dict[FaultKind, int] = field(default_factory=dict)
    faults_s: float = 1.0
    drain_s: float = 2.0
    mix: dict[Wish, float] = field(default_factory=dict)
    commands: tuple[str, ...] = ("complete",)
    fsync: Literal["always", "everysec"] = "always"
    words: int = 0

    @property
    def scenario(self) -> Scenario:
        """The short run."""
        return Scenario(
            name=self.broken,
            topology=Topology(
                producers=(Traffic(mix=self.mix), Traffic()), routers=2, replicas=2, fsync=self.fsync, words=self.words
            ),
            faults=self.faults,
            baseline_s=0.2,
            faults_s=self.faults_s,
            calm_s=0.2,
            drain_s=self.drain_s,
            commands=self.commands,
            rules=replace(PATIENT, words=self.words),
        )


CONTROLS = [
    Control("acknowledge_first", {"I1"}, {FaultKind.KILL_ROUTER: 2}, faults_s=1.5, drain_s=5.0),
    Control("no_fence", {"I2"}, {FaultKind.DROP_REPLY: 6}),
    Control("trimmed_lane", {"I1", "I5"}),
    Control("forgotten_tenant", {"I5"}),
    Control("eternal_records", {"I13"}),
    Control("lying_cancel", {"I7"}, mix={Wish.CANCEL: 0.2}),
    Control("robbed_living", {"I16"}, faults_s=4.5),
    Control("forgetful_start", {"I9"}, {FaultKind.KILL_REPLICA: 3}, faults_s=2.0, drain_s=20.0, words=100),
    Control(
        "unfenced_chunk", {"I9"}, {FaultKind.DROP_REPLY: 6}, faults_s=2.0, drain_s=20.0, words=100, commands=("chunk",)
    ),
    Control("lost_tail", {"I1"}, {FaultKind.KILL_REDIS: 2}, faults_s=2.0, drain_s=5.0, fsync="everysec"),
]


def test_every_sabotage_has_a_control() -> None:
    assert {control.broken for control in CONTROLS} == set(SABOTAGES)


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: str(control.broken))
async def test_the_checker_sees_what_is_broken(control: Control) -> None:
    outcome = await run_scenario(control.scenario, seed=SEED, broken=control.broken)
    assert control.seen <= {violation.invariant for violation in outcome.violations}, outcome.violations


@pytest.mark.slow
async def test_the_real_build_passes_what_the_broken_ones_did_not() -> None:
    """All their faults and wishes at once."""
    faults = {kind: count for control in CONTROLS for kind, count in control.faults.items()}
    both = Control("", set(), faults, faults_s=3.0, drain_s=20.0, mix={Wish.CANCEL: 0.2})
    outcome = await run_scenario(both.scenario, seed=SEED)
    assert outcome.violations == []
    assert outcome.dropped_replies > 0
