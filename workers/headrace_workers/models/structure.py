"""Structure: giving a module the shape that a compressed model has, where its configuration says another.

A configuration knows one width for all blocks and no missing ones; a pruned model has a width for each. What a variant
may change is little, because nobody vouches for who wrote it: which blocks are left, how wide linear layers are, and a
few numbers by which attention goes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Structure

__all__ = ["HEAD_ATTRIBUTES", "WIDTH_ATTRIBUTES", "apply_structure", "drop_blocks"]

HEAD_ATTRIBUTES: Final = ("num_attention_heads", "n_heads", "num_heads", "num_key_value_heads")
"""Where attention modules keep how many heads they have."""
WIDTH_ATTRIBUTES: Final = ("all_head_size", "dim")
"""Where they keep how wide all heads together are."""


def apply_structure(module: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> None:
    """Give a module, made by its configuration, the shape that a variant's tensors have.

    Args:
        module: changed in place: blocks dropped, attributes set, `nn.Linear`s replaced by narrower ones on the meta
            device, whose tensors come with `load_state_dict(…, assign=True)`.
        structure: what the variant says.
        tensors: the variant's tensors; only the shapes of its weights are looked at.

    Raises:
        ArtifactError: it names a module that is not there, or asks for something that structures cannot ask for.
    """
    for path, kept in structure.layers.items():
        _check_blocks(module, path, kept)
        drop_blocks(module, path, kept)
    for path, attributes in structure.attributes.items():
        part = _part(module, path)
        for name, value in attributes.items():
            _check_attribute(part, f"{path}.{name}", name, value)
            setattr(part, name, value)
    _resize(module, tensors)


def drop_blocks(module: nn.Module, path: str, kept: Sequence[int]) -> None:
    """Leave only some blocks of a list, and everything that counts blocks in accord.

    Args:
        module: changed in place. The configuration it holds becomes one of its own, for `module` is often not the
            only one that holds it.
        path: name of the `nn.ModuleList`.
        kept: places of the blocks that stay, in order.
    """
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    left = nn.ModuleList(blocks[place] for place in kept)
    module.set_submodule(path, left)
    for place, block in enumerate(left):
        for part in block.modules():
            if isinstance(getattr(part, "layer_idx", None), int):  # where a block's keys stand in a decoder's cache
                part.layer_idx = place  # type: ignore[assignment]
    _recount(module, len(blocks), kept)


def _recount(module: nn.Module, of: int, kept: Sequence[int]) -> None:
    shared = getattr(module, "config", None)
    if getattr(shared, "num_hidden_layers", None) != of:
        return
    config: Any = copy.deepcopy(shared)
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(kept)
    if types is not None:
        config.layer_types = [types[place] for place in kept]
    for part in module.modules():
        if getattr(part, "config", None) is shared:
            part.config = config


def _check_blocks(module: nn.Module, path: str, kept: Sequence[int]) -> None:
    blocks = _part(module, path)
    if not isinstance(blocks, nn.ModuleList):
        raise ArtifactError(f"the structure keeps blocks of {path!r}, which is a {type(blocks).__name__}, not a list")
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= len(blocks):
        raise ArtifactError(f"the structure keeps {list(kept)} of the {len(blocks)} blocks of {path!r}")


def _check_attribute(part: nn.Module, where: str, name: str, value: int) -> None:
    if name not in HEAD_ATTRIBUTES + WIDTH_ATTRIBUTES:
        known = ", ".join(HEAD_ATTRIBUTES + WIDTH_ATTRIBUTES)
        raise ArtifactError(f"the structure sets {where}; all it may set is {known}")
    present = vars(part).get(name)
    if type(present) is not int:
        raise ArtifactError(f"the structure sets {where}, a number that the module does not have")
    if not 1 <= value <= present:
        raise ArtifactError(f"the structure sets {where} to {value}; it can be 1 to {present}")


def _part(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the structure names {path!r}, a module that config.json does not make") from None


def _resize(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Narrow linear layers, and nothing else: a table with fewer rows would fail at some texts only."""
    for path, linear in list(module.named_modules()):
        weight = tensors.get(f"{path}.weight")
        if not isinstance(linear, nn.Linear) or weight is None or weight.shape == linear.weight.shape:
            continue
        if weight.dim() != 2 or any(got > most for got, most in zip(weight.shape, linear.weight.shape, strict=True)):
            raise ArtifactError(
                f"{path}.weight is {list(weight.shape)}; config.json says {list(linear.weight.shape)}, or less"
            )
        rows, columns = weight.shape
        module.set_submodule(path, nn.Linear(columns, rows, bias=linear.bias is not None, device="meta"))
