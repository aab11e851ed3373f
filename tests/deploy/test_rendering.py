"""What the overlays come to, by kubectl where there is one; elsewhere by what the other tests go by."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.kustomization import KUBERNETES, OVERLAYS, Object, overlay, parse, rendered

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")


def by_kubectl(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    assert done.stderr == "", done.stderr
    return parse(done.stdout)


def without_suffixes(objects: list[Object]) -> list[str]:
    """The objects as text, in an order of their own."""
    text = (json.dumps(found, sort_keys=True) for found in objects)
    return sorted(re.sub(r'("name": "headrace[a-z-]*)-[a-z0-9]{10}"', r'\1"', found) for found in text)


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_it_is_what_kubectl_makes_of_them(name: str) -> None:
    """Object by object; of the suffix of a ConfigMap's name, all that counts is that its users have the same."""
    here, there = overlay(name), by_kubectl(KUBERNETES / "overlays" / name)
    assert without_suffixes(here) == without_suffixes(there)
    assert len(names_of_models(here)) == len(names_of_models(there)) == 1


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the manifests that a test may change, as their user would."""
    return Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes"))


def test_with_a_redis_of_ones_own(tree: Path) -> None:
    """One line of an overlay: no StatefulSet is left but Ray's."""
    file = tree / "overlays" / "cpu" / "kustomization.yaml"
    file.write_text(file.read_text().replace("components/jobs-redis", "components/external-redis"))
    sets = [found["metadata"]["name"] for found in rendered(file.parent) if found["kind"] == "StatefulSet"]
    assert sets == ["headrace-gcs-redis"]


def test_other_models_are_another_config_map_in_every_pod(tree: Path) -> None:
    """So a change of them is a change of the cluster, and no node serves what another does not."""
    (tree / "overlays" / "gpu" / "models.yaml").write_text("models: {echo: {engine: {kind: echo}}}\n")
    before, after = overlay("gpu-spot"), rendered(tree / "overlays" / "gpu-spot")
    assert names_of_models(before).isdisjoint(names_of_models(after))
    assert len(names_of_models(after)) == 1


def names_of_models(objects: list[Object]) -> set[str]:
    """The names under which anything in there knows the models."""
    [service] = [found for found in objects if found["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    volumes = [volume for template in templates for volume in template["spec"]["volumes"]]
    named = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    made = [found["metadata"]["name"] for found in objects if found["kind"] == "ConfigMap"]
    return {*named, *(name for name in made if name.startswith("headrace-models"))}


def test_patches_are_json_patches_alone() -> None:
    """A merge patch on a list of groups replaces the list, without a word."""
    for file in KUBERNETES.rglob("kustomization.yaml"):
        [content] = parse(file.read_text())
        assert not {"patchesStrategicMerge", "patchesJson6902", "bases", "commonLabels"} & set(content)
        for patch in content.get("patches", []):
            operations = yaml.safe_load((file.parent / patch["path"]).read_text())
            assert all(operation["op"] in ("add", "replace") for operation in operations)
