"""Looking on while a model runs: what comes into its modules, without the padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["valid_rows", "watched"]


@contextmanager
def watched(module: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """See what comes into modules while the context lasts.

    Args:
        module: the model.
        names: of its modules.
        see: is given a module's name and its first input, before the module runs.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, arguments: see(name, arguments[0])

    handles = [module.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def valid_rows(x: Tensor, valid: Tensor) -> Tensor:
    """What came into a layer without padding: float32 [..., width] to [rows, width].

    Args:
        x: by example and position, or by example alone.
        valid: bool [examples, positions].
    """
    x = x.detach().float()
    if x.dim() == 3 and x.shape[:2] == valid.shape:
        return x[valid]
    rows = x.reshape(-1, x.shape[-1])
    return rows[valid.reshape(-1)] if rows.shape[0] == valid.numel() else rows
