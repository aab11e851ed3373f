"""msgpack on the wire: one way in, one way out, and one named error for whatever can be wrong with bytes.

The decoder is the border. It refuses extension types (nothing is ever revived into an object; msgpack's own
timestamp becomes a number), keys that are neither text nor bytes, truncated or trailing bytes, lengths that
the input cannot hold and nesting deep enough to exhaust a stack; each of them surfaces as `DecodeError`,
never as the library's own zoo.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgpack

from headrace.errors import DecodeError

__all__ = ["MAX_DEPTH", "MAX_PAYLOAD_BYTES", "check_plain", "pack", "unpack"]

MAX_PAYLOAD_BYTES: Final = 1 << 20
"""Largest packed payload of one job or one answer: 1 MiB."""

MAX_DEPTH: Final = 16
"""Deepest nesting of lists and maps in an input, a parameter or an output."""

_PLAIN = (str, bytes, int, bool, type(None))


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise DecodeError(f"msgpack extension type {code} is not part of the wire format")


def pack(value: Any) -> bytes:
    """Pack plain data (None, bool, int, float, str, bytes, list, dict).

    Raises:
        DecodeError: a value has no place in the wire format, or a string is not valid Unicode.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise DecodeError(f"cannot be packed: {error}") from None
    return packed


def unpack(data: bytes) -> Any:
    """Unpack what `pack` or a peer in another language packed.

    Raises:
        DecodeError: for every way in which the bytes can be wrong.
    """
    try:
        # max_buffer_size is what bounds declared lengths: no container may promise more than came.
        # The library keeps one extension, the timestamp, to itself: as a number it is plain data at least.
        return msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_refuse_extension, timestamp=2)
    except DecodeError:
        raise
    except UnicodeDecodeError as error:
        raise DecodeError(f"a string is not UTF-8: {error.reason} at byte {error.start}") from None
    except msgpack.exceptions.StackError:
        raise DecodeError("nested too deeply") from None
    except msgpack.exceptions.ExtraData:
        raise DecodeError("bytes follow the message") from None
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise DecodeError(f"not msgpack: {str(error) or type(error).__name__}") from None


def check_plain(value: Any, *, depth: int = MAX_DEPTH) -> Any:
    """Return `value` if it is finite plain data, nested at most `depth` deep.

    Raises:
        ValueError: with words that finish the sentence "the input …".
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("holds NaN or infinity, which no model takes")
        return value
    if depth == 0:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item, depth=depth - 1)
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"has a map key that is not text: {type(key).__name__}")
            check_plain(item, depth=depth - 1)
        return value
    raise ValueError(f"holds a {type(value).__name__}, which the wire format has no place for")
