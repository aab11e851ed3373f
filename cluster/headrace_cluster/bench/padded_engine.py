"""A padded model as an engine, so that batches of rectangles can be served by all that serves ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from headrace import Tensor
from headrace_cluster.bench.padded import PaddedModel
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["PaddedEngine"]

_LONGEST = 256


class PaddedEngine:
    """Runs each batch as one rectangle, as long as its longest text.

    Args:
        model: a Hugging Face folder or a hub id.
        precision: fp32, or int8 with this node's kernels.
    """

    def __init__(self, model: str, precision: Literal["fp32", "int8"] = "int8") -> None:
        self._model = PaddedModel(model, precision=precision)
        self._lengths = load_tokenizer(find_source(model), _LONGEST).lengths
        self.info = EngineInfo(variant=f"{precision}-padded", task="embedding", device="cpu", load_s=0.0)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """A job's work is its own tokens; what padding adds, nobody asked for."""
        texts = [str(value) for value, _params in requests]
        lengths = self._lengths(texts)
        return [Prepared(min(tokens, _LONGEST), text) for tokens, text in zip(lengths, texts, strict=True)]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """The embeddings."""
        rows = self._model([item.data for item in items])
        return [Tensor(dtype="float32", shape=[len(row) // 4], data=row) for row in rows]

    def example(self) -> tuple[Any, dict[str, Any]]:
        """A text."""
        return "headrace", {}
