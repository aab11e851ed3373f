"""How a text model is usually run: tokenize with padding, one forward pass, and what the task asks of its output.

It is what the fp32 baselines and `@serve.batch` run, here on the very weights and, for int8, the very kernels
that headrace serves; what differs is that a batch is a rectangle, as long as its longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.kernels.layers import prepare_layers
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source

__all__ = ["PaddedModel"]


class PaddedModel:
    """Embeds or classifies batches of texts with padding.

    Args:
        model: a Hugging Face folder or a hub id; its architecture says which of the two.
        precision: fp32, or int8 with this node's kernels.
    """

    def __init__(self, model: str, *, precision: Literal["fp32", "int8"]) -> None:
        source = find_source(model)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(source.folder)
        loaded = load_model(source, source.task(None))
        self._module, self._embeds = loaded.module, loaded.task == "embedding"
        if precision == "int8":
            quantize_model(self._module)
            prepare_layers(self._module, KernelTable("int8"))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """The embeddings or logits, each as float32 bytes."""
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        output = self._module(**inputs)
        rows = _embeddings(output[0], inputs["attention_mask"]) if self._embeds else output.logits
        return [row.numpy().tobytes() for row in rows]


def _embeddings(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The normalized mean of each text's token vectors."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
