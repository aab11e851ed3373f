"""Interrupts, Ctrl-C and SIGTERM, of a program that has processes to stop before it ends.

A handler's exception may come up at any step of the main thread. Where that is in the middle of starting a process, the
process may be forgotten; and Python drops an exception that comes up while it forks, with the lock of `logging` held.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_wait", "sigterm_interrupts", "take_back"]


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt in the main thread, where there is a context to leave."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Have interrupts come at the end of the block, which should not be long."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not None}  # set from Python
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for missed in came[:1]:
            signal.raise_signal(missed)


def take_back(number: signal.Signals) -> None:
    """Have Python hear of a signal again, for which a library has put a handler of its own below Python's."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and (handler := signal.getsignal(number)) is not None:
        signal.signal(number, handler)
