"""Kernels: how compressed layers are computed on this node, and how the fastest sound way is found."""

from headrace_workers.kernels.attention import Packing, attend, packed
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding, QuantizedLinear
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.selection import BUCKETS, KernelTable
from headrace_workers.kernels.weights import Activation, AffineWeight, InputRange, Int8Weight

__all__ = [
    "BUCKETS",
    "Activation",
    "AffineLinear",
    "AffineWeight",
    "CompressedLinear",
    "InputRange",
    "Int8Weight",
    "Isa",
    "KernelTable",
    "Packing",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "attend",
    "packed",
    "support",
]
