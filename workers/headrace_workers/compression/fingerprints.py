"""Fingerprints: what a checkpoint depends on, in a few digits."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from headrace_workers.compression.data import Examples, Split

__all__ = ["digest", "fingerprint_of_data", "fingerprint_of_module"]


def digest(*parts: str) -> str:
    """The SHA-256 of texts, each apart from the next."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        whole.update(len(content).to_bytes(8) + content)
    return whole.hexdigest()


def fingerprint_of_data(data: Split) -> str:
    """The SHA-256 of all examples and labels, part by part."""
    return digest(*(_of_examples(part) for part in (data.train, data.validation, data.test)))


def _of_examples(examples: Examples) -> str:
    inputs = [_of_tensor(one) if isinstance(one, Tensor) else str(one) for one in examples.inputs]
    return digest(*inputs, repr(examples.labels), repr(examples.label_names))


def fingerprint_of_module(module: nn.Module) -> str:
    """The SHA-256 of a module's tensors, by name."""
    return digest(*(f"{name} {_of_tensor(tensor)}" for name, tensor in sorted(module.state_dict().items())))


def _of_tensor(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return f"{plain.dtype} {list(plain.shape)} {hashlib.sha256(content).hexdigest()}"
