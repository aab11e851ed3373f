"""Sets for files with more lines than memory has room for objects: a bit or a few bytes for each member."""

from __future__ import annotations

from array import array
from typing import Final

__all__ = ["LineSet", "TextSet"]

_FIRST_SLOTS: Final = 1024


class LineSet:
    """Line numbers: one bit for each line of the file."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, line: int) -> None:
        """Put a line number in."""
        byte, bit = divmod(line, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), len(self._bits) // 8)))
        self._count += not self._bits[byte] >> bit & 1
        self._bits[byte] |= 1 << bit

    def __contains__(self, line: int) -> bool:
        byte, bit = divmod(line, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __len__(self) -> int:
        return self._count


class TextSet:
    """Texts, of each of which only its 64-bit hash is kept: 12 to 24 bytes a text.

    Two different texts are taken for one with a chance of one in 3,700 among a hundred million of them.
    Python's hash is keyed anew in every process, so nobody can prepare a file of texts that collide.
    """

    def __init__(self) -> None:
        self._slots = _empty(_FIRST_SLOTS)
        self._count = 0

    def add(self, text: str) -> bool:
        """Put a text in. False if it is in already."""
        if 3 * self._count >= 2 * len(self._slots):
            self._grow()
        added = self._insert(hash(text) or 1)
        self._count += added
        return added

    def _insert(self, fingerprint: int) -> bool:
        slots, last = self._slots, len(self._slots) - 1
        place = fingerprint & last
        while (found := slots[place]) != 0:
            if found == fingerprint:
                return False
            place = (place + 1) & last
        slots[place] = fingerprint
        return True

    def _grow(self) -> None:
        old, self._slots = self._slots, _empty(2 * len(self._slots))
        for fingerprint in old:
            if fingerprint:
                self._insert(fingerprint)

    def __len__(self) -> int:
        return self._count


def _empty(slots: int) -> array[int]:
    return array("q", bytes(8 * slots))
