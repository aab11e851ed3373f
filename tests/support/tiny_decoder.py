"""A language model of two layers and random weights that speaks SmolLM2's tokens: quick to load, and nobody's fool.

Its weights are spread so widely that each token depends on all before it: what is computed wrong is seen in the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.chat_model import chat_model

__all__ = ["TINY_CONTEXT", "tiny_decoder"]

TINY_CONTEXT = 512


def tiny_decoder(folder: Path, **sizes: Any) -> Path:
    """Write the model's folder and return it; `sizes` replace some of its configuration."""
    chat_model(folder)
    config: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TINY_CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**config | sizes)).save_pretrained(folder)
    return folder
