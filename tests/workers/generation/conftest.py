"""A real tokenizer of a chat model: SmolLM2's, which is byte-level BPE."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from headrace_workers.generation.text import TokenSpelling
from headrace_workers.models.source import ModelSource
from support.chat_model import chat_model


@pytest.fixture(scope="session")
def chat_source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """The files of SmolLM2-135M-Instruct, but for its weights."""
    return chat_model(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def byte_level(chat_source: ModelSource) -> Tokenizer:
    """Its tokenizer."""
    return Tokenizer.from_file(str(chat_source.folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def spelling(byte_level: Tokenizer) -> TokenSpelling:
    """What its tokens say."""
    return TokenSpelling(byte_level)
