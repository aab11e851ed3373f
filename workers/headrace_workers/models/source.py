"""Where a model's files are: an artifact, a folder as Hugging Face writes it, a hub id of one, or a GGUF file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.errors import ModelLoadError
from headrace_workers.artifacts.artifact import Artifact, Task, is_artifact, open_artifact
from headrace_workers.models.artifact_cache import fetch_artifact
from headrace_workers.models.gguf import import_gguf, is_gguf
from headrace_workers.models.remote_artifact import is_url

__all__ = ["ModelSource", "find_source"]

log = logging.getLogger(__name__)

_FROM_HUB: Final = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
"""What is fetched from a hub: no pickles, no code."""

_TASK_OF_HEAD: Final[dict[str, Task]] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForCausalLM": "causal_lm",
}


@dataclass(frozen=True)
class ModelSource:
    """A model's files on this machine."""

    name: str
    """What the user called it."""
    folder: Path
    artifact: Artifact | None
    """Verified, if the folder is one."""

    def read_json(self, relative: str) -> Any:
        """The content of a JSON file, or None if there is no such file.

        Raises:
            ModelLoadError: the file is not JSON.
        """
        path = self.folder / relative
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ModelLoadError(f"{path} is not JSON: {error}") from None

    def read_map(self, relative: str) -> dict[str, Any]:
        """The content of a JSON file that holds a map; empty if there is no such file."""
        content = self.read_json(relative)
        if content is not None and not isinstance(content, dict):
            raise ModelLoadError(f"{self.folder / relative} should hold a map")
        return content or {}

    def task(self, asked: Task | None) -> Task:
        """The task asked for, the artifact's, or what the model's architecture says.

        Raises:
            ModelLoadError: the artifact was made for another task.
        """
        if self.artifact is not None:
            made_for = self.artifact.manifest.task
            if asked not in (None, made_for):
                raise ModelLoadError(f"{self.name} was made for {made_for}, not for {asked}")
            return made_for
        if asked is not None:
            return asked
        if (self.folder / "modules.json").is_file():  # sentence-transformers', whatever the weights were made as
            return "embedding"
        for architecture in self.read_map("config.json").get("architectures") or []:
            for ending, task in _TASK_OF_HEAD.items():
                if str(architecture).endswith(ending):
                    return task
        return "embedding"


def find_source(model: str | Path) -> ModelSource:
    """The files of a model given by path, URL or hub id.

    An artifact given by URL is fetched into this node's cache first (`fetch_artifact`), and a GGUF file is converted
    (`import_gguf`), each once.

    Raises:
        ModelLoadError: there is no such folder, it holds no model, the hub does not give it, or a GGUF file is broken.
        ArtifactError: it is an artifact, and broken.
    """
    path = fetch_artifact(str(model)) if is_url(str(model)) else Path(model)
    if is_artifact(path):
        artifact = open_artifact(path)
        return ModelSource(str(model), path, artifact)
    if is_gguf(path):
        return ModelSource(str(model), import_gguf(path), None)
    folder = path if path.is_dir() else _from_hub(str(model))
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} holds no model: it has no config.json")
    return ModelSource(str(model), folder, None)


def _from_hub(model: str) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelLoadError(f"there is no folder {model!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_FROM_HUB))
    except Exception as error:  # whatever a network and a hub can raise
        raise ModelLoadError(
            f"{model!r} is no folder here, and the hub does not give it: {type(error).__name__}: {error}"
        ) from error
