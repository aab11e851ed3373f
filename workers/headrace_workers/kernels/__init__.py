"""Kernels: how compressed layers are computed on this node, and how the fastest sound way is found."""

from headrace_workers.kernels.attention import Packing, attend, packed
from headrace_workers.kernels.layers import CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.selection import BUCKETS, KernelTable
from headrace_workers.kernels.weights import Activation, Int8Weight

__all__ = [
    "BUCKETS",
    "Activation",
    "CompressedLinear",
    "Int8Weight",
    "Isa",
    "KernelTable",
    "Packing",
    "QuantizedEmbedding",
    "attend",
    "packed",
    "support",
]
