"""The tokenizer of a real chat model, without its weights: SmolLM2's, out of the packaged GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace_cluster.bench.models import packaged_language_model
from headrace_workers.models.gguf_file import read_gguf
from headrace_workers.models.gguf_tokenizer import gguf_tokenizer, gguf_tokenizer_config
from headrace_workers.models.source import ModelSource

__all__ = ["CONTEXT", "chat_model"]

CONTEXT = 8192


def chat_model(folder: Path, **settings: Any) -> ModelSource:
    """Write what Hugging Face keeps of a model beside its weights; `settings` replace some of tokenizer_config.json."""
    metadata = read_gguf(packaged_language_model()).metadata
    (folder / "tokenizer.json").write_text(gguf_tokenizer(metadata).to_str(), "utf-8")
    beside = gguf_tokenizer_config(metadata, CONTEXT) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}))
    return ModelSource("smollm2", folder, None)
