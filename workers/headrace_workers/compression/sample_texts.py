"""Texts for those who give none: sentences of Python's own documentation, which every install has.

They are enough to see what rounding does to answers. They are no substitute for the texts a model will be asked:
whoever trains or calibrates gives data.
"""

from __future__ import annotations

import re
from typing import Final

from headrace_workers.compression.data import Examples

__all__ = ["SAMPLE_TEXTS", "sample_texts"]

SAMPLE_TEXTS: Final = "sentences of Python's own documentation, since no data was given"
"""How reports call them."""

_COUNT: Final = 1200
_SENTENCES: Final = re.compile(r"(?<=[.!?])\s+|\n\n")
_CHARACTERS: Final = range(15, 700)


def sample_texts() -> Examples:
    """About a thousand sentences of all lengths, always the same with one version of Python."""
    from pydoc_data.topics import topics

    found = (" ".join(part.split()) for name in sorted(topics) for part in _SENTENCES.split(topics[name]))
    kept = [text for text in dict.fromkeys(found) if len(text) in _CHARACTERS and text[0].isalpha()]
    return Examples(kept[:: max(1, len(kept) // _COUNT)])
