"""The model under the knife: a torch module, with what it takes to run it on data and to write it down.

Stages know nothing of tasks, tokenizers or architectures; they ask a subject. `TextSubject` is for the models of
transformers, encoders and causal language models alike; `ModuleSubject` for any other torch module.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.errors import CompressionDataError
from headrace_workers.artifacts.artifact import Structure, Task
from headrace_workers.compression.data import Examples
from headrace_workers.compression.embedding import pooled
from headrace_workers.models.loading import LoadedModel, load_model, max_tokens_of
from headrace_workers.models.pooling import read_pooling
from headrace_workers.models.source import ModelSource
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["Answers", "Batch", "ModuleSubject", "Subject", "TextSubject", "load_subject"]

_TRAINED_TOKENS: Final = 256
"""Longest text, in tokens, that is trained or calibrated with; what is longer is cut."""


@dataclass(frozen=True)
class Batch:
    """Examples that go through a model together."""

    inputs: Mapping[str, Tensor]
    """By the names of the model's own arguments; padded."""
    valid: Tensor
    """Bool [examples, positions]: which positions are no padding. [examples, 1] for a model without positions."""
    labels: Tensor | None = None
    """Int64 [examples]."""

    def __len__(self) -> int:
        return int(self.valid.shape[0])


@dataclass(frozen=True)
class Answers:
    """What a model said of a batch."""

    rows: Tensor
    """Float32 [rows, width]: an embedding or the logits of an example; for language models and token classification
    the logits of every valid position, those that predict nothing left out."""
    hidden: tuple[Tensor, ...] = ()
    """Hidden states [examples, positions, width], embeddings first; empty unless asked for."""
    targets: Tensor | None = None
    """Int64 [rows]: what would have been right, where that is known."""


class Subject(ABC):
    """A model being compressed. `module` changes from stage to stage; everything else stays.

    Args:
        module: in float32, on the CPU.
        task: what it does; `custom` for modules that are none of transformers'.
    """

    def __init__(self, module: nn.Module, task: Task) -> None:
        self.module = module
        self.task = task
        self.structure = Structure()
        """How it differs from what its configuration says."""

    @abstractmethod
    def batches(self, examples: Examples, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """All examples once, `size` at a time; shuffled if there is a seed, else in order."""

    @abstractmethod
    def answers(self, batch: Batch, *, module: nn.Module | None = None, hidden: bool = False) -> Answers:
        """Run a batch through `module`, this subject's own if None, with gradients if they are enabled."""

    @abstractmethod
    def with_module(self, module: nn.Module, config: Any = None) -> Subject:
        """The same subject around another module, and its configuration if that is another."""

    @property
    def labelled(self) -> bool:
        """Whether examples must have labels for there to be a metric."""
        return self.task in ("sequence_classification", "custom")

    def clone(self) -> Subject:
        """A subject with a copy of the module, to be changed."""
        twin = self.with_module(copy.deepcopy(self.module))
        twin.structure = self.structure
        return twin


class TextSubject(Subject):
    """A model of transformers.

    Args:
        loaded: in float32.
        source: its files.
        max_tokens: longer texts are cut.
    """

    def __init__(self, loaded: LoadedModel, source: ModelSource, *, max_tokens: int = _TRAINED_TOKENS) -> None:
        super().__init__(loaded.module, loaded.task)
        self.config = loaded.config
        self.source = source
        self.max_tokens = min(max_tokens, max_tokens_of(source, loaded))
        self._tokenizer = load_tokenizer(source, self.max_tokens)
        self._pooling = read_pooling(source) if self.task == "embedding" else None

    def with_module(self, module: nn.Module, config: Any = None) -> TextSubject:
        """See `Subject`."""
        twin = copy.copy(self)
        twin.module = module
        twin.config = self.config if config is None else config
        twin.structure = Structure()
        return twin

    @property
    def loaded(self) -> LoadedModel:
        """The model as engines and runners take it."""
        return LoadedModel(self.module, self.config, self.task)

    def batches(self, examples: Examples, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """See `Subject`."""
        for part in _parts(len(examples), size, seed):
            chosen = examples.take(part)
            yield self.batch(chosen.inputs, chosen.labels)

    def batch(self, texts: Sequence[str], labels: Sequence[int] | None = None) -> Batch:
        """Texts as the model takes them, padded to the longest."""
        ids = [torch.from_numpy(self._tokenizer.cut(text).ids) for text in texts]
        if not ids or min(map(len, ids)) == 0:
            raise CompressionDataError("a text without tokens")
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        valid = torch.arange(padded.shape[1])[None] < torch.tensor([[len(row)] for row in ids])
        inputs = {"input_ids": padded, "attention_mask": valid.long()}
        return Batch(inputs, valid, None if labels is None else torch.tensor(labels))

    def answers(self, batch: Batch, *, module: nn.Module | None = None, hidden: bool = False) -> Answers:
        """See `Subject`."""
        output = (self.module if module is None else module)(**batch.inputs, output_hidden_states=hidden)
        states = tuple(output.hidden_states) if hidden else ()
        if self.task == "embedding":
            assert self._pooling is not None
            return Answers(pooled(output[0], batch.valid, self._pooling), states)
        logits = output.logits
        if self.task == "causal_lm":
            predicts = batch.valid[:, 1:]
            return Answers(logits[:, :-1][predicts], states, batch.inputs["input_ids"][:, 1:][predicts])
        if self.task == "token_classification":
            return Answers(logits[batch.valid], states)
        return Answers(logits, states, batch.labels)


class ModuleSubject(Subject):
    """Any torch module that takes one float32 tensor [examples, …] and answers with logits [examples, classes].

    Args:
        module: the model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, "custom")

    def with_module(self, module: nn.Module, config: Any = None) -> ModuleSubject:
        """See `Subject`."""
        twin = copy.copy(self)
        twin.module = module
        twin.structure = Structure()
        return twin

    def batches(self, examples: Examples, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """See `Subject`."""
        for part in _parts(len(examples), size, seed):
            chosen = examples.take(part)
            x = torch.stack(list(chosen.inputs)).float()
            labels = None if chosen.labels is None else torch.tensor(chosen.labels)
            yield Batch({"x": x}, torch.ones(len(x), 1, dtype=torch.bool), labels)

    def answers(self, batch: Batch, *, module: nn.Module | None = None, hidden: bool = False) -> Answers:
        """See `Subject`. A plain module has no hidden states to show."""
        rows = (self.module if module is None else module)(batch.inputs["x"])
        return Answers(rows.float(), (), batch.labels)


def load_subject(source: ModelSource, task: Task | None = None) -> TextSubject:
    """The subject that a model's files hold.

    Raises:
        ModelLoadError: the model cannot be loaded.
    """
    return TextSubject(load_model(source, source.task(task)), source)


def _parts(count: int, size: int, seed: int | None) -> Iterator[list[int]]:
    order = list(range(count))
    if seed is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, count, size):
        yield order[start : start + size]
