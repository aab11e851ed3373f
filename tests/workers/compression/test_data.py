"""Data: how files are read, how examples are cut into parts that never mix, and how labels find their classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.errors import CompressionDataError
from headrace_workers.compression.data import Examples, read_examples, split
from headrace_workers.compression.fingerprints import fingerprint_of_data
from headrace_workers.compression.labels import in_the_models_order
from headrace_workers.compression.sample_texts import sample_texts
from headrace_workers.compression.subject import load_subject
from headrace_workers.models.source import find_source

TEXTS = [f"the mill turns {count} times" for count in range(300)]

# -- what it is for -----------------------------------------------------------------------------------------


def test_a_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("water runs\n\n  \nthe wheel turns\n")

    examples = read_examples(file)

    assert list(examples) == ["water runs", "the wheel turns"]
    assert examples.labels is None


def test_a_json_object_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    lines = [
        {"text": "so good", "label": "good"},
        {"text": "so bad", "label": "bad"},
        {"text": "fine", "label": "good"},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines))

    examples = read_examples(file)

    assert examples.label_names == ("bad", "good")
    assert examples.labels == [1, 0, 1]


def test_what_judges_is_never_trained_on() -> None:
    parts = split(Examples(TEXTS))

    inputs = [set(part.inputs) for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, inputs)) == len(TEXTS)
    assert not inputs[0] & inputs[1] | inputs[0] & inputs[2] | inputs[1] & inputs[2]
    assert 0.6 < len(inputs[0]) / len(TEXTS) < 0.8


def test_more_examples_move_no_other() -> None:
    before, after = split(Examples(TEXTS)), split(Examples(["one more", *TEXTS, *TEXTS[:50]]))

    assert set(before.test.inputs) <= set(after.test.inputs)
    assert not set(after.test.inputs) & set(after.train.inputs)


def test_examples_that_are_no_text() -> None:
    parts = split(Examples(list(torch.arange(400.0).view(200, 2)), [0, 1] * 100))

    assert len(parts.train) + len(parts.validation) + len(parts.test) == 200
    assert parts.test.labels is not None


def test_a_sample_is_the_same_with_the_same_seed() -> None:
    examples = Examples(TEXTS, list(range(300)))

    first, again, other = (examples.sample(20, seed=seed) for seed in (1, 1, 2))

    assert list(first) == list(again) != list(other)
    assert first.labels == [TEXTS.index(text) for text in first]


def test_there_are_texts_for_those_who_have_none() -> None:
    parts = split(sample_texts())

    assert len(parts.test) > 100
    assert max(len(text) for text in parts.test) > 200


# -- labels ---------------------------------------------------------------------------------------------------


def test_labels_get_the_numbers_that_the_model_has_for_them(tiny_model: Callable[..., Path]) -> None:
    names = {0: "zero", 1: "one", 2: "two"}
    subject = load_subject(find_source(tiny_model("Bert", "ForSequenceClassification", id2label=names)))

    by_name = in_the_models_order(Examples(["a", "b"], [1, 0], ("one", "two")), subject)
    by_number = in_the_models_order(Examples(["a", "b"], [1, 0], ("0", "2")), subject)

    assert by_name.labels == [2, 1]
    assert by_number.labels == [2, 0]
    assert by_name.label_names == ("zero", "one", "two")
    with pytest.raises(CompressionDataError, match="no label 'three'; it has zero, one, two"):
        in_the_models_order(Examples(["a"], [0], ("three",)), subject)


def test_labels_mean_nothing_to_an_embedding_model(tiny_model: Callable[..., Path]) -> None:
    subject = load_subject(find_source(tiny_model("Bert")))

    assert in_the_models_order(Examples(["a"], [0], ("x",)), subject).labels is None


# -- edges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": ', r"t\.jsonl:2 is not JSON"),
        ("t.jsonl", b'{"txt": "a"}', "has no text"),
        ("t.jsonl", b'{"text": "  "}', "has no text"),
        ("t.jsonl", b'["a"]', "has no text"),
        ("t.jsonl", b'{"text": "a", "label": 1.5}', "a label is a word or a whole number"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}', "1 of 2 examples have a label"),
        ("t.txt", b"\n \n", "holds no text"),
        ("t.txt", b"\xff\xfe", "not UTF-8"),
        ("t.txt", b"x" * ((1 << 20) + 1), "longer than"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CompressionDataError, match=complaint):
        read_examples(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CompressionDataError, match="No such file"):
        read_examples(tmp_path / "none.txt")


def test_too_few_to_cut() -> None:
    with pytest.raises(CompressionDataError, match="give about 100 or more"):
        split(Examples(TEXTS[:20]))


def test_a_fingerprint_tells_data_apart() -> None:
    plain = split(Examples(TEXTS))
    labelled = split(Examples(TEXTS, [0] * 300))
    relabelled = split(Examples(TEXTS, [0] * 299 + [1]))
    tensors = [split(Examples(list(torch.arange(200.0).view(200, 1) * scale))) for scale in (1, 2)]

    prints = [fingerprint_of_data(data) for data in (plain, labelled, relabelled, *tensors)]

    assert len(set(prints)) == 5
    assert fingerprint_of_data(split(Examples(list(TEXTS)))) == prints[0]
