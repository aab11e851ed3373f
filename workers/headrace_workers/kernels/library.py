"""The native kernels: finding them, loading them, and saying why not where they cannot be used.

The library is compiled when the package is built (`native/*.c`) and chooses its instruction set on the node that
runs it. Without it, or on another processor, everything still works on torch's kernels; `support()` tells the
reason. It must be loaded after torch, so that both share one pool of OpenMP threads.
"""

from __future__ import annotations

import ctypes
import logging
import os
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import torch  # noqa: F401  (brings its libgomp into the process; ours must find that one)

__all__ = ["Affine", "Attention", "Block", "Isa", "Library", "Linear", "Norm", "Support", "native_library", "support"]

log = logging.getLogger(__name__)

_PATH: Final = Path(__file__).parent / "native" / "headrace_kernels.so"
_ABI: Final = 4
_VARIABLE: Final = "HEADRACE_ISA"


class Isa(StrEnum):
    """Instruction sets that the native kernels are written for, and none."""

    NONE = "none"
    AVX512_VNNI = "avx512_vnni"
    AMX = "amx"


_RANK: Final = (Isa.NONE, Isa.AVX512_VNNI, Isa.AMX)


class Linear(ctypes.Structure):
    """`hr_linear`: one packed int8 layer. Whoever fills it in keeps the tensors alive."""

    _fields_ = [
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("activation", ctypes.c_int64),
        ("input_scale", ctypes.c_float),
        ("input_zero", ctypes.c_int32),
        ("fine", ctypes.c_int64),
    ]


class Affine(ctypes.Structure):
    """`hr_affine`: one packed layer of few-bit weights. Whoever fills it in keeps the tensors alive."""

    _fields_ = [
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("order", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("activation", ctypes.c_int64),
    ]


class Attention(ctypes.Structure):
    """`hr_attention`: queries, keys and values of packed sequences. Strides are in floats."""

    _fields_ = [
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]


class Norm(ctypes.Structure):
    """`hr_norm`: a layer norm."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float)]


class Block(ctypes.Structure):
    """`hr_block`: one post-norm transformer block."""

    _fields_ = [
        ("qkv", Linear),
        ("out", Linear),
        ("up", Linear),
        ("down", Linear),
        ("attention_norm", Norm),
        ("output_norm", Norm),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]


class Library:
    """The functions of the compiled library. They release the GIL while they run."""

    def __init__(self, path: Path) -> None:
        native = ctypes.CDLL(str(path))
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        self.pack = native.hr_pack
        self.pack.argtypes, self.pack.restype = [pointer, long, long, pointer, pointer], None
        self.linear = native.hr_linear_run
        self.linear.argtypes = [pointer, pointer, long, long, pointer, long, integer, integer]
        self.affine = native.hr_affine_run
        self.affine.argtypes = [pointer, pointer, long, long, pointer, long, integer]
        self.attention = native.hr_attention_run
        self.attention.argtypes = [pointer, integer]
        self.block = native.hr_block_run
        self.block.argtypes = [pointer, pointer, long, pointer, long, pointer, integer, integer]
        self.decoder = native.hr_decoder_run
        self.decoder.argtypes = [pointer, pointer, integer, integer]


class Support(NamedTuple):
    """What of the native kernels this process can use."""

    isas: tuple[Isa, ...]
    """Usable instruction sets, best first; empty where there are none."""
    reason: str
    """Why not more; empty where everything is used."""
    library: Library | None

    @property
    def best(self) -> Isa:
        """The best usable instruction set."""
        return self.isas[0] if self.isas else Isa.NONE


def support() -> Support:
    """What can be used here, after `HEADRACE_ISA` (`amx`, `avx512_vnni` or `none`: use no more than that).

    Raises:
        ValueError: `HEADRACE_ISA` is none of those.
    """
    return _support(os.environ.get(_VARIABLE, ""))


def native_library() -> Library:
    """The compiled library, for those who know from `support()` that there is one.

    Raises:
        RuntimeError: there is none.
    """
    library = _found().library
    if library is None:
        raise RuntimeError(_found().reason)
    return library


@cache
def _support(limit: str) -> Support:
    if limit and limit not in set(Isa):
        raise ValueError(f"{_VARIABLE} is {limit!r}; it may be one of {', '.join(Isa)}")
    found = _found()
    isas = tuple(isa for isa in found.isas if not limit or _RANK.index(isa) <= _RANK.index(Isa(limit)))
    reason = found.reason if isas == found.isas else f"{_VARIABLE}={limit}"
    if not isas:
        log.warning("int8 runs on torch's kernels, not on ours: %s", reason)
    else:
        log.info("native kernels: %s%s", isas[0], f" ({reason})" if reason else "")
    return Support(isas, reason, found.library if isas else None)


@cache
def _found() -> Support:
    """What is compiled and what the processor has, whatever the environment says."""
    if not _PATH.is_file():
        return Support((), f"{_PATH.name} was not compiled when the package was built (no C compiler)", None)
    try:
        probe = ctypes.CDLL(str(_PATH))
        abi = int(probe.hr_abi())
    except (OSError, AttributeError) as error:
        return Support((), f"{_PATH.name} cannot be loaded: {error}", None)
    if abi != _ABI:
        return Support((), f"{_PATH.name} is of version {abi}, this code of version {_ABI}: rebuild the package", None)
    best = int(probe.hr_best_isa())
    if best == 0:
        return Support((), "this processor or kernel has no AVX512-VNNI", None)
    reason = "" if best == len(_RANK) - 1 else "this processor or kernel has no AMX-INT8"
    return Support(_RANK[best:0:-1], reason, Library(_PATH))
