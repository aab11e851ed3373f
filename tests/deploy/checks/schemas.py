"""Each object against the schema of its kind: unknown fields, wrong types, what is missing.

The schema of a RayService is that of KubeRay v1.7.0's custom resource definition (Apache-2.0), with unknown
properties refused. The others are Kubernetes' own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import kubernetes_validate  # type: ignore[import-untyped]
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from deploy.kustomization import Object
from deploy.manifests import Manifests

__all__ = ["findings"]

_SCHEMA: Final = Path(__file__).parents[1] / "schemas" / "rayservice-v1.7.0.schema.json.gz"
_KUBERNETES: Final = "1.34"


def findings(manifests: Manifests) -> Iterator[str]:
    """What does not fit a schema."""
    for found in manifests.objects:
        where = f"{found.get('kind')} {found.get('metadata', {}).get('name')}"
        if found.get("apiVersion") == "ray.io/v1" and found.get("kind") == "RayService":
            for error in _ray_service().iter_errors(found):
                yield f"{where}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        else:
            yield from (f"{where}: {problem}" for problem in _kubernetes(json.dumps(found)))


@cache
def _ray_service() -> Draft202012Validator:
    return Draft202012Validator(json.loads(gzip.decompress(_SCHEMA.read_bytes())))


@cache
def _kubernetes(text: str) -> tuple[str, ...]:
    found: Object = json.loads(text)
    try:
        kubernetes_validate.validate(found, _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (str(error).splitlines()[0],)
    except kubernetes_validate.SchemaNotFoundError:
        return (f"Kubernetes {_KUBERNETES} has no such kind in {found.get('apiVersion')}",)
    return ()
