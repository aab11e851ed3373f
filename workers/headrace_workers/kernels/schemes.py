"""Schemes: the words in which an artifact says how a module's weights are stored.

==================================  ========================================================================
`int8_channel`                      a linear layer in int8, a scale for each output, inputs quantized by row
`int8_channel_static`               the same, inputs quantized by a range found in calibration
`int8_row`                          an embedding table in int8, a scale for each row
`affine4`, `affine3_group64_zero`   a linear layer in 2–8 bits, by output or group of columns; `_zero`: not
                                    symmetric; inputs stay as they are
`…@module`                          the weights are those of that table, in int8: a head tied to it
==================================  ========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["INT8_ROW", "LayerScheme", "parse_scheme", "scheme_of"]

INT8_ROW: Final = "int8_row"

_PATTERN: Final = re.compile(
    r"(?:(?P<kind>int8_row|int8_channel(?P<static>_static)?)|affine(?P<bits>[2-8])(?:_group(?P<group>[1-9][0-9]{0,5}))?(?P<zero>_zero)?)"
    r"(?:@(?P<table>.+))?"
)


@dataclass(frozen=True)
class LayerScheme:
    """How one module's weights are stored."""

    kind: Literal["int8_row", "int8_channel", "affine"]
    bits: int = 8
    group: int | None = None
    zero: bool = False
    static: bool = False
    table: str = ""
    """The module whose int8 rows these weights are; empty: they are its own."""

    def __str__(self) -> str:
        tied = f"@{self.table}" if self.table else ""
        if self.kind != "affine":
            return self.kind + ("_static" if self.static else "") + tied
        grouped = "" if self.group is None else f"_group{self.group}"
        return f"affine{self.bits}{grouped}{'_zero' if self.zero else ''}{tied}"


def parse_scheme(text: str) -> LayerScheme:
    """A scheme from its word.

    Raises:
        ValueError: there is none of that name.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"no scheme is called {text!r}")
    table = match["table"] or ""
    if match["bits"] is None:
        static = match["static"] is not None
        return LayerScheme("int8_row" if match["kind"] == INT8_ROW else "int8_channel", static=static, table=table)
    group = None if match["group"] is None else int(match["group"])
    return LayerScheme("affine", int(match["bits"]), group, match["zero"] is not None, table=table)


def scheme_of(weight: Int8Weight | AffineWeight, *, table: str = "") -> LayerScheme:
    """The scheme of a linear layer's weight, which may be that of a table."""
    if isinstance(weight, Int8Weight):
        return LayerScheme("int8_channel", static=weight.input_range is not None, table=table)
    return LayerScheme("affine", weight.bits, weight.group, weight.zero is not None, table=table)
