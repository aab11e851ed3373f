"""Every overlay, held against everything there is: nothing is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.checks import findings
from deploy.kustomization import KUBERNETES, OVERLAYS, overlay, rendered
from deploy.manifests import Manifests


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_wrong_with_it(name: str) -> None:
    """Schemas, the operator's rules, Serve's keys, names, sizes, times, rights, versions."""
    assert findings(overlay(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_nor_with_a_redis_of_ones_own(name: str, tmp_path: Path) -> None:
    """One component in place of the other."""
    tree = Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes"))
    for file in tree.rglob("kustomization.yaml"):
        file.write_text(file.read_text().replace("components/jobs-redis", "components/external-redis"))
    patch = tree / "overlays" / "dev" / "kustomization.yaml"
    patch.write_text(patch.read_text().partition("  - path: small-redis.yaml")[0])
    assert findings(rendered(tree / "overlays" / name)) == []


def test_the_groups() -> None:
    """What the overlays are for."""
    assert [group.name for group in Manifests(overlay("cpu")).groups] == ["cpu"]
    groups = Manifests(overlay("gpu-spot")).groups
    assert [group.name for group in groups] == ["cpu", "gpu", "gpu-spot"]
    _, on_demand, spot = groups
    assert spot.spec["priority"] > on_demand.spec["priority"]
    assert spot.labels["headrace.io/pool"] == on_demand.labels["headrace.io/pool"] == "gpu"
    assert (spot.cpus, spot.gpus) == (4, 1)
