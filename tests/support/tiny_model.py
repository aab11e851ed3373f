"""A model small enough to be compressed in a test of something else: weights random but fixed, words few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["WORDS", "write_tiny_model"]

WORDS = [
    "the",
    "mill",
    "wheel",
    "turns",
    "when",
    "water",
    "runs",
    "down",
    "a",
    "headrace",
    "and",
    "rests",
    "it",
    "does",
]


def write_tiny_model(folder: Path, head: str = "Model", **settings: Any) -> Path:
    """Write a BERT of one block and a tokenizer of a few words, as Hugging Face does; returns the folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(7)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=1200, max_position_embeddings=64, **{**shape, **settings})
    model = getattr(transformers, f"Bert{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({"[UNK]": 0} | {word: at for at, word in enumerate(WORDS, 1)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    return folder
