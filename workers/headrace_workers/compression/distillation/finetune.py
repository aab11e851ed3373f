"""Fine-tuning: a classifier, made of an encoder and labelled examples, for those who have none to compress yet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from headrace.errors import CompressionDataError, ModelLoadError, StageError
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.distillation.training import fast_products, text_lengths, train
from headrace_workers.compression.recipe import Training
from headrace_workers.compression.subject import TextSubject
from headrace_workers.models.loading import LoadedModel, quiet_transformers
from headrace_workers.models.source import ModelSource

__all__ = ["classifier_of", "save_classifier", "train_classifier"]

_VALIDATED: Final = 256
"""Validation examples that decide which weights were best."""
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentence_bert_config.json",
)
"""What a tokenizer is read from, and the length at which it cuts."""


def train_classifier(
    source: ModelSource,
    split: Split,
    training: Training,
    *,
    seed: int = 0,
    label_names: Sequence[str] = (),
    progress: Callable[[float], None] = lambda _share: None,
) -> TextSubject:
    """Put a classification head on an encoder and train all of it on labelled texts, with cross-entropy.

    Args:
        source: the encoder's files.
        split: labelled texts. The weights that are best on the validation part are kept; the test part is not seen.
        training: how long, how fast; a learning rate of about 1e-4 suits an encoder that was trained before.
        seed: of the head's first weights, the order of texts and dropout.
        label_names: the classes' names; those of the data if none are given.
        progress: takes the share of steps that are done.

    Raises:
        CompressionDataError: the texts have no labels, or one that has no name.
        ModelLoadError: the encoder cannot be loaded, or its architecture has no classification head.
        StageError: training broke.
    """
    names = tuple(label_names) or split.train.label_names
    for part in (split.train, split.validation):
        _check_labels(part, names)
    subject = classifier_of(source, names, seed=seed)
    train(_Classification(subject, split), training, seed=seed, progress=progress)
    return subject


def classifier_of(source: ModelSource, label_names: Sequence[str], *, seed: int = 0) -> TextSubject:
    """An encoder with a new classification head.

    Args:
        source: the encoder's files.
        label_names: the classes' names; there must be two at least.
        seed: of the head's weights.

    Raises:
        CompressionDataError: fewer than two classes.
        ModelLoadError: the encoder cannot be loaded, or its architecture has no classification head.
    """
    if len(label_names) < 2:
        raise CompressionDataError(f"a classifier needs two classes or more, not {len(label_names)}")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        module = _with_head(source, list(label_names))
    return TextSubject(
        LoadedModel(module.eval().requires_grad_(False), module.config, "sequence_classification"), source
    )


def save_classifier(subject: TextSubject, folder: Path) -> None:
    """Write a model as transformers would: config.json with the classes' names, safetensors, the tokenizer's files.

    Args:
        subject: in float32, and not pruned: a plain folder cannot hold blocks of different widths.
        folder: must not exist; it does once all of it is written.

    Raises:
        StageError: the model is pruned.
        FileExistsError: there is such a folder.
    """
    if subject.structure.layers or subject.structure.attributes:
        raise StageError("a pruned model is no plain model any more; write it as an artifact")
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        whole = Path(unfinished) / "model"
        _write(subject, whole)
        whole.rename(folder)


def _write(subject: TextSubject, folder: Path) -> None:
    module: Any = subject.module
    with quiet_transformers():
        module.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        file = subject.source.folder / name
        if file.is_file():
            shutil.copyfile(file, folder / name)


class _Classification:
    """The `TrainingTask` of a classifier."""

    def __init__(self, subject: TextSubject, split: Split) -> None:
        self._subject, self._train = subject, split.train
        self._validation = split.validation.take(range(min(_VALIDATED, len(split.validation))))
        self.module, self.beside = subject.module, nn.Identity()
        self.lengths = text_lengths(split.train)

    def backward(self, places: Sequence[int]) -> float:
        """See `TrainingTask`."""
        with fast_products():
            loss = self._loss(self._train.take(places), len(places))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def validation_loss(self) -> float:
        """See `TrainingTask`."""
        return self._loss(self._validation, 32).item()

    def _loss(self, examples: Examples, size: int) -> torch.Tensor:
        """The mean over examples, `size` of which go through the model at a time."""
        losses = []
        for batch in self._subject.batches(examples, size):
            answers = self._subject.answers(batch)
            assert answers.targets is not None
            losses.append(functional.cross_entropy(answers.rows.float(), answers.targets, reduction="sum"))
        return torch.stack(losses).sum() / len(examples)


def _with_head(source: ModelSource, names: list[str]) -> Any:
    import transformers

    try:
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            str(source.folder),
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: place for place, name in enumerate(names)},
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except Exception as error:  # transformers raises many kinds for a model it does not like
        raise ModelLoadError(f"{source.name} cannot be given a classification head: {error}") from error


def _check_labels(examples: Examples, names: Sequence[str]) -> None:
    if examples.labels is None:
        raise CompressionDataError('a classifier needs labels: a line is {"text": …, "label": …}')
    if len(examples) == 0:
        raise CompressionDataError("there is nothing to train with")
    if not 0 <= min(examples.labels) <= max(examples.labels) < len(names):
        raise CompressionDataError(
            f"labels reach to {max(examples.labels)}, but there are {len(names)} names of classes"
        )
