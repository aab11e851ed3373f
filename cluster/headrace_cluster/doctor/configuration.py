"""Whether a configuration is right, and what it names is there: artifacts, variants for this node, a GPU.

Nothing is fetched, and no model is loaded: `headrace check` does that.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.doctor import Case, Diagnosis, Level
from headrace.errors import ArtifactError, ConfigError
from headrace_cluster.config.models import ModelConfig
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_workers.artifacts.artifact import Artifact, is_artifact, open_artifact
from headrace_workers.models.remote_artifact import is_url
from headrace_workers.models.variants import fitting_variant

__all__ = ["examine_config"]

_NOT_SERVED: Final = "a replica that is started with it fails, and its model is not served"


def examine_config(case: Case) -> tuple[ServiceConfig | None, list[Diagnosis]]:
    """Read and judge a configuration, if there is one.

    Args:
        case: which; where Redis is and what it must keep is filled in, unless the command line has said so.

    Returns:
        The configuration, if it is right; and what was found.
    """
    if case.config is None:
        return None, []
    try:
        config = load_config(case.config)
        url = config.redis_address.resolve() if config.redis_address else None
    except ConfigError as error:
        fix = "correct it; docs/configuration.md has every key"
        return None, [Diagnosis("config", Level.ERROR, str(error), "the service does not start with it", fix)]
    case.redis_url = case.redis_url or url
    case.durability = config.redis.durability
    models = f"{case.config}: {len(config.models)} models"
    found = [Diagnosis("config", Level.OK, models)]
    for name, hosted in config.models.items():
        found += _examine_model(name, hosted)
    return config, [*found, *_gpu(config)]


def _examine_model(name: str, hosted: ModelConfig) -> Iterator[Diagnosis]:
    model = hosted.engine.model
    if hosted.engine.kind == "custom" and not model:
        return
    if is_url(model):
        yield from _url(name, model)
    elif is_artifact(model):
        yield from _artifact(name, hosted, Path(model))
    elif model.startswith(("/", "./", "../", "~")) and not Path(model).exists():
        fix = f"put it there on every node, or give the artifact's URL: models.{name}.engine.model"
        yield Diagnosis("artifacts", Level.ERROR, f"{name}: there is nothing at {model} here", _NOT_SERVED, fix)


def _url(name: str, url: str) -> Iterator[Diagnosis]:
    if "#sha256=" in url:
        yield Diagnosis("artifacts", Level.OK, f"{name}: is fetched by its hash when a replica starts")
        return
    yield Diagnosis(
        "artifacts",
        Level.WARN,
        f"{name}: its URL names no hash",
        "replicas that start at different times may serve different models",
        "sha256sum manifest.json in the artifact, and put #sha256=<it> behind the URL",
    )


def _artifact(name: str, hosted: ModelConfig, folder: Path) -> Iterator[Diagnosis]:
    """Its hashes, and whether it has what this node needs."""
    try:
        artifact = open_artifact(folder)
        variant = _variant(hosted, artifact)
    except ArtifactError as error:
        fix = f"copy it anew, or make it again: headrace compress; headrace artifact show {folder}"
        yield Diagnosis("artifacts", Level.ERROR, f"{name}: {error}", _NOT_SERVED, fix)
        return
    count = len(artifact.manifest.files)
    yield Diagnosis("artifacts", Level.OK, f"{name}: {count} files are as the manifest says; this node runs {variant}")


def _variant(hosted: ModelConfig, artifact: Artifact) -> str:
    """Which variant this node runs.

    Raises:
        ArtifactError: none, or not the one that is asked for.
    """
    if hosted.engine.variant is not None:
        return artifact.variant(hosted.engine.variant).name
    from headrace_workers.node import capabilities

    return fitting_variant(artifact, device=_device(), flags=capabilities().flags)


def _device() -> str:
    from torch import cuda

    return "cuda" if cuda.is_available() else "cpu"


def _gpu(config: ServiceConfig) -> Iterator[Diagnosis]:
    wanted = [f"{name}@{pool.name}" for name, hosted in config.models.items() for pool in hosted.pools if pool.gpus]
    if wanted and _device() == "cpu":
        yield Diagnosis(
            "gpu",
            Level.WARN,
            f"{', '.join(wanted)} want a GPU, and torch sees none on this machine",
            "if this is where they run, their replicas never start",
            "nvidia-smi; a driver for the CUDA of torch (python -c 'import torch; print(torch.version.cuda)')",
        )
    elif shutil.which("nvidia-smi") is not None and _device() == "cpu":
        yield Diagnosis(
            "gpu",
            Level.WARN,
            "there is a GPU here, and torch cannot use it",
            "pools with gpus do not start on this machine",
            "pip install torch for CUDA, and a driver that is new enough: nvidia-smi",
        )
