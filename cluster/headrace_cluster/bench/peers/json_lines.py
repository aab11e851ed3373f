"""How a benchmark talks to a program in a process of its own: one line of JSON asks, one line of JSON answers.

What the program's libraries print goes to stderr, so that nothing comes between the answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["answer_lines"]


def answer_lines(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer every line `{"do": NAME, …}` of stdin with what the handler of that name returns, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = handlers[asked.pop("do")](**asked)
        print(json.dumps(answer), file=answers, flush=True)
