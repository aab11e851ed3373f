"""Labels: data numbers classes by the order of their names, a model as its configuration says. Data gives way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headrace.errors import CompressionDataError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.subject import Subject, TextSubject

__all__ = ["in_the_models_order"]


def in_the_models_order(examples: Examples, subject: Subject) -> Examples:
    """The examples with the classes' numbers that a classifier has for them; labels mean nothing to other models.

    A label is one of the model's names, or the number of one.

    Raises:
        CompressionDataError: the model does not know a label.
    """
    if not isinstance(subject, TextSubject) or examples.labels is None:
        return examples
    if subject.task != "sequence_classification":
        return replace(examples, labels=None, label_names=())
    known: Mapping[str, int] = {str(name): int(at) for at, name in subject.config.id2label.items()}
    numbers = [_number(name, known) for name in examples.label_names]
    names = tuple(sorted(known, key=lambda name: known[name]))
    return Examples(examples.inputs, [numbers[label] for label in examples.labels], names)


def _number(label: str, known: Mapping[str, int]) -> int:
    if label in known:
        return known[label]
    if label.isdecimal() and int(label) in known.values():
        return int(label)
    raise CompressionDataError(f"the model knows no label {label[:80]!r}; it has {', '.join(list(known)[:20])}")
