"""Labelled text that every installation has: what the documentation of eight installed packages says.

A benchmark of a classifier needs real sentences with real labels, also where there is no network. Docstrings are such
sentences, and which package one belongs to is its label. They are read out of the source by its syntax tree; no package
is imported for it. What would give the answer away or is no prose goes: the names of the packages, code, tables of
parameters, and texts that several packages share.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from headrace.errors import CompressionDataError
from headrace_workers.compression.data import Examples

__all__ = ["LIBRARIES", "documentation_examples", "write_examples"]

LIBRARIES: Final = ("huggingface_hub", "networkx", "numpy", "ray", "redis", "sympy", "torch", "transformers")
"""What a paragraph may document; all of them are dependencies of headrace, or of those."""

_NAMES: Final = re.compile(
    r"(?<![a-z])(?:hugging ?face(?:_hub)?(?:\s+hub)?|hf|networkx|nx|numpy|np|rays?|redis|sympy"
    r"|(?:py)?torch|transformers?)(?![a-z])\.?",
    re.IGNORECASE,
)
_SHORTEST_WORDS: Final = 8
_LONGEST_WORDS: Final = 200
_LEAST_PROSE: Final = 0.85
"""Share of a paragraph's words that must be words, rather than code."""
_MOST_FILE_BYTES: Final = 400_000
_SPARE: Final = 1.3
"""How many more are read than are asked for, since some turn out to be shared between packages."""

_ROLE: Final = re.compile(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`_*")
_LINK: Final = re.compile(r"\[([^\]]+)\]\([^)]*\)|https?://\S+")
_MARKUP: Final = re.compile(r"`_{1,2}(?!\w)|[`*|]+")
_PROSE_WORD: Final = re.compile(r"""["'(]*[A-Za-z]+(?:['’/-][A-Za-z]+)*["')]*[.,;:!?]*["')]*""")
_NO_PROSE: Final = re.compile(
    r"""
      \s                                    # indented: code, or what a parameter is for
    | >>>|\.\.\.|\.\.\s|```|\$|@|\||[-=~+^#]{2,} # prompts, directives, fences, tables, lines under headings
    | :\w                                   # :param x:
    | [\w.*`, \[\]]+\s*(?:\([^)]*\))?\s*:(?:\s|$)    # name (type): …, and headings that end in a colon
    """,
    re.VERBOSE,
)


def documentation_examples(*, per_label: int = 1000, seed: int = 0) -> Examples:
    """Paragraphs of documentation, each with the package that it documents; the same for the same versions.

    Args:
        per_label: how many of each package.
        seed: which of those there are, and in which order.

    Returns:
        `per_label` texts of 8 to 200 words for each of `LIBRARIES`, mixed.

    Raises:
        CompressionDataError: a package is missing, or has fewer paragraphs than that.
    """
    if per_label < 1:
        raise CompressionDataError(f"{per_label} paragraphs of each package were asked for; ask for at least one")
    found = {name: _read(name, int(per_label * _SPARE) + 8, seed) for name in LIBRARIES}
    chosen = [(text, label) for label, name in enumerate(LIBRARIES) for text in _own(name, found, per_label)]
    random.Random(seed).shuffle(chosen)
    return Examples([text for text, _ in chosen], [label for _, label in chosen], LIBRARIES)


def write_examples(examples: Examples, path: Path) -> None:
    """Write labelled texts as `read_examples` reads them: a line of JSON for each."""
    labels = [None] * len(examples) if examples.labels is None else [examples.label_names[at] for at in examples.labels]
    lines = [
        json.dumps({"text": text} if label is None else {"text": text, "label": label}, ensure_ascii=False)
        for text, label in zip(examples.inputs, labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def prose_of(paragraph: str) -> str | None:
    """A paragraph of a docstring as plain text without the packages' names, or None if it is not prose."""
    if any(_NO_PROSE.match(line) for line in paragraph.splitlines()):
        return None
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", paragraph))
    text = " ".join(_NAMES.sub(" ", _MARKUP.sub("", text)).split())
    words = text.split()
    if not _SHORTEST_WORDS <= len(words) <= _LONGEST_WORDS:
        return None
    prose = sum(_PROSE_WORD.fullmatch(word) is not None for word in words)
    return text if prose >= _LEAST_PROSE * len(words) else None


def _own(name: str, found: dict[str, dict[str, str]], count: int) -> list[str]:
    """The first texts of a package that no other package has."""
    others = {key for other, texts in found.items() if other != name for key in texts}
    own = [text for key, text in found[name].items() if key not in others]
    if len(own) < count:
        raise CompressionDataError(f"the documentation of {name} has {len(own)} fitting paragraphs, not {count}")
    return own[:count]


@cache
def _read(name: str, count: int, seed: int) -> dict[str, str]:
    """About `count` different texts of a package, by their letters alone."""
    texts: dict[str, str] = {}
    for file in _files(name, seed):
        for docstring in _docstrings(file):
            for paragraph in docstring.split("\n\n"):
                text = prose_of(paragraph)
                if text is not None:
                    texts.setdefault(_letters(text), text)
        if len(texts) >= count:
            break
    return texts


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _files(name: str, seed: int) -> list[Path]:
    """A package's modules, shuffled by the hash of their names: not in the order of a file system."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CompressionDataError(f"the package {name} is not installed; its documentation is part of this data")
    root = Path(spec.submodule_search_locations[0])
    files = [
        path
        for path in root.rglob("*.py")
        if not {"tests", "test", "testing", "_vendor", "thirdparty_files"} & set(path.relative_to(root).parts)
    ]
    return sorted(files, key=lambda path: hashlib.sha256(f"{seed}:{path.relative_to(root)}".encode()).digest())


def _docstrings(file: Path) -> Iterator[str]:
    content = file.read_bytes()
    if len(content) > _MOST_FILE_BYTES or b'"""' not in content:
        return
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # templates, and code for other versions of Python
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
