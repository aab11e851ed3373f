"""Labelled text out of installed packages."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from headrace.errors import CompressionDataError
from headrace_cluster.bench import documentation
from headrace_cluster.bench.documentation import LIBRARIES, documentation_examples, prose_of, write_examples
from headrace_workers.compression.data import Examples, read_examples

FEW = 12


@pytest.fixture(scope="module")
def examples() -> Examples:
    return documentation_examples(per_label=FEW)


def test_as_many_of_each_package(examples: Examples) -> None:
    assert examples.labels is not None
    assert Counter(examples.label_names[label] for label in examples.labels) == dict.fromkeys(LIBRARIES, FEW)
    assert len(set(examples.inputs)) == len(examples)
    assert all(8 <= len(text.split()) <= 200 for text in examples.inputs)


def test_the_answer_is_not_in_the_text(examples: Examples) -> None:
    for text in examples.inputs:
        words = {word.strip(".,;:()'\"").lower() for word in text.split()}
        assert not words & {*LIBRARIES, "np", "nx", "pytorch", "hf"}


def test_the_same_in_another_process(examples: Examples) -> None:
    """Nothing depends on hashes of strings, on the order of a file system, or on what was read before."""
    code = f"from headrace_cluster.bench.documentation import *; print(documentation_examples(per_label={FEW}).inputs)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(examples.inputs)


def test_another_seed_another_choice(examples: Examples) -> None:
    other = documentation_examples(per_label=FEW, seed=1)
    assert len(set(other.inputs) & set(examples.inputs)) < len(examples) // 2


def test_written_and_read_again(examples: Examples, tmp_path: Path) -> None:
    write_examples(examples, tmp_path / "docs.jsonl")
    again = read_examples(tmp_path / "docs.jsonl")
    assert list(again.inputs) == list(examples.inputs)
    assert again.label_names == LIBRARIES
    assert again.labels == examples.labels
    write_examples(Examples(["a text\nof two lines"]), tmp_path / "plain.jsonl")
    assert read_examples(tmp_path / "plain.jsonl").inputs == ["a text\nof two lines"]


def test_prose_is_what_is_left_of_a_paragraph() -> None:
    paragraph = (
        "Return the :class:`~numpy.ndarray` of a `NumPy`_ array,\n"
        "as is *usual* for [the docs](https://numpy.org) of it."
    )
    assert prose_of(paragraph) == "Return the ndarray of a array, as is usual for the docs of it."


@pytest.mark.parametrize(
    "paragraph",
    [
        ">>> x = numpy.zeros(3) # and so on and so on and so on",
        "    an indented line is code, or says what some parameter is for",
        "x : array_like, the values of which are looked at one by one here",
        "axis (int, optional): along which of the axes to go, the last by default",
        ":param x: what comes in, which may be about anything that there is",
        ".. note:: this is a directive and no sentence of the documentation at all",
        "Parameters\n----------\nthat are explained below, one after the other, in a list",
        "three words only",
        "x_0 = a_1 + b_2 * c_3 where d_4 is e_5 and f_6",
    ],
)
def test_what_is_no_prose(paragraph: str) -> None:
    assert prose_of(paragraph) is None


def test_texts_that_two_packages_share_belong_to_none() -> None:
    found = {"numpy": {"a": "A!", "b": "B"}, "torch": {"a": "A?", "c": "C"}}
    assert documentation._own("numpy", found, 1) == ["B"]
    with pytest.raises(CompressionDataError, match="numpy has 1 fitting paragraphs, not 2"):
        documentation._own("numpy", found, 2)


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompressionDataError, match="at least one"):
        documentation_examples(per_label=0)
    monkeypatch.setattr(documentation, "LIBRARIES", ("numpy", "no_such_package"))
    with pytest.raises(CompressionDataError, match="no_such_package is not installed"):
        documentation_examples(per_label=1)
