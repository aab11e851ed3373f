"""What a quantization does to each module: decided from a recipe's words, before anything is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

import torch
from torch import nn

from headrace.errors import StageError
from headrace_workers.compression.recipe import ActivationScheme, Quantize, WeightScheme

__all__ = ["LEFT_ALONE", "Plan", "TableScheme", "plan_of", "tied_heads"]

LEFT_ALONE: Final = ("*classifier*", "*pooler*", "*pre_classifier*", "*score", "*lm_head*", "*qa_outputs*")
"""Patterns of module names that are not quantized by default."""

_SMALL_TABLE_ROWS: Final = 1024
"""Embedding tables of fewer rows (positions, token types) are left alone: nothing is won there."""

TableScheme = Literal["int8", "fp16", "bf16"]


@dataclass
class Plan:
    """Module names, by what becomes of them."""

    linears: dict[str, WeightScheme] = field(default_factory=dict)
    tables: dict[str, TableScheme] = field(default_factory=dict)
    heads: dict[str, tuple[str, ActivationScheme]] = field(default_factory=dict)
    """Linear layers whose weight is an int8 table's, which they share on."""
    skipped: list[str] = field(default_factory=list)

    @property
    def int8(self) -> list[str]:
        """Linear layers for the int8 kernels."""
        return [name for name, scheme in self.linears.items() if is_int8(scheme)]


def is_int8(scheme: WeightScheme) -> bool:
    """Whether products are in int8: symmetric weights, a scale for each output, and inputs quantized too."""
    plain = scheme.bits == 8 and scheme.group is None and scheme.symmetric
    return plain and scheme.activations.kind != "none"


def plan_of(module: nn.Module, stage: Quantize) -> Plan:
    """Say what a stage does to each linear layer and embedding table.

    A head that is tied to a table goes with it: it is quantized with the table or not at all, unless an override says
    otherwise of the head, which then holds for both.

    Raises:
        StageError: there is nothing to quantize, an override fits no module, or a table is to have what tables cannot.
    """
    parts = {name: part for name, part in module.named_modules() if type(part) in (nn.Linear, nn.Embedding)}
    if not parts:
        raise StageError(f"{type(module).__name__} has no linear layers and no embedding tables to quantize")
    for pattern in stage.overrides:
        if not any(fnmatchcase(name, pattern) for name in parts):
            raise StageError(f"the override {pattern!r} fits none of the modules, such as {next(iter(parts))}")
    plan, ties = Plan(), tied_heads(module)
    for name, part in parts.items():
        if isinstance(part, nn.Embedding):
            _plan_table(plan, name, part, stage, [head for head, table in ties.items() if table == name])
        elif name not in ties:
            _plan_linear(plan, name, stage)
    return plan


def tied_heads(module: nn.Module) -> dict[str, str]:
    """Linear layers whose weight is the very one of an embedding table, with the table's name."""
    tables = {id(part.weight): name for name, part in module.named_modules() if type(part) is nn.Embedding}
    return {
        name: tables[id(part.weight)]
        for name, part in module.named_modules()
        if type(part) is nn.Linear and id(part.weight) in tables
    }


def _plan_linear(plan: Plan, name: str, stage: Quantize) -> None:
    overridden, scheme = _override(stage, name)
    if not overridden:
        scheme = None if _fits(name, LEFT_ALONE if stage.left_alone is None else stage.left_alone) else stage.weights
    if scheme is None:
        plan.skipped.append(name)
    else:
        plan.linears[name] = scheme


def _plan_table(plan: Plan, name: str, table: nn.Embedding, stage: Quantize, heads: Sequence[str]) -> None:
    kind = _kind(table, name, stage, heads)
    if kind is None:
        plan.skipped += [name, *heads]
        return
    plan.tables[name] = kind
    for head in heads:
        if kind == "int8":
            _, scheme = _override(stage, head)
            plan.heads[head] = (name, (scheme or stage.weights).activations)


def _kind(table: nn.Embedding, name: str, stage: Quantize, heads: Sequence[str]) -> TableScheme | None:
    for named in (name, *heads):
        overridden, scheme = _override(stage, named)
        if overridden:
            return None if scheme is None else _table_scheme(named, scheme)
    if table.num_embeddings < _SMALL_TABLE_ROWS or stage.embeddings == "keep":
        return None
    if stage.left_alone is not None and any(_fits(named, stage.left_alone) for named in (name, *heads)):
        return None
    return stage.embeddings


def _table_scheme(name: str, scheme: WeightScheme) -> TableScheme:
    if scheme.dtype != "int":
        return scheme.dtype
    if scheme.bits == 8 and scheme.group is None and scheme.symmetric and scheme.activations.kind != "static":
        return "int8"
    raise StageError(f"{name} is an embedding table, or tied to one: it can have symmetric int8, fp16 or bf16")


def _override(stage: Quantize, name: str) -> tuple[bool, WeightScheme | None]:
    """Whether an override fits a module, and which: the first that does."""
    for pattern, scheme in stage.overrides.items():
        if fnmatchcase(name, pattern):
            return True, scheme
    return False, None


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def half(kind: TableScheme | Literal["int"]) -> torch.dtype:
    """The type of 16 bits that a word stands for."""
    return torch.float16 if kind == "fp16" else torch.bfloat16
