"""The runner for every architecture that calls transformers' `AttentionInterface`, on CPUs and GPUs.

All rows of a step go through the module as one row of tokens; attention keeps sequences apart and finds what they said
before in pages. Whether an architecture can be run like that is not looked up but tried (`runner_check`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from headrace_workers.generation.cuda_graphs import CaptureError, DecodeGraphs
from headrace_workers.generation.key_value_pages import KeyValuePages, LayerShape, opened_pages
from headrace_workers.generation.paged_attention import (
    PagedPass,
    Rules,
    attending,
    paged_attention_interface,
    plan_pass,
    row_positions,
)
from headrace_workers.generation.runner import PAGE_TOKENS, RunnerInfo, Step
from headrace_workers.generation.runner_check import attends_exactly
from headrace_workers.kernels.attention import UnsupportedAttentionError

__all__ = ["TorchRunner", "most_positions"]

log = logging.getLogger(__name__)

_ATTENTION: Final = "headrace_paged"
_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_LENGTH_BOUND: Final = frozenset({"dynamic", "longrope"})
"""Rotary embeddings whose angles depend, beyond the length the model was trained on, on the longest sequence around."""
_LONGEST_TRIED: Final = 1024
"""Tokens up to which attention is measured to be exact; every length after that is more blocks of the same."""


class TorchRunner:
    """Computes steps with a transformers module. See `DecoderRunner`.

    Args:
        module: a causal language model in eval mode, ready to run on `device`: quantized layers prepared. Its attention
            is replaced; it is not to be called by others afterwards.
        device: where it is.
        dtype: of keys and values: what the module computes in.
        max_positions: the longest sequence; None: what the model was made for.
        graphs: whether steps that only decode are replayed as CUDA graphs; None: on GPUs.

    Raises:
        UnsupportedAttentionError: the architecture cannot be run like that; the message says why.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_positions: int | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.best = None
        self._module: Any = module
        self._device, self._dtype = torch.device(device), dtype
        positions = min(most_positions(self._module.config), max_positions or 1 << 30)
        self._takes_wanted = _check_forward(module)
        _use_paged_attention(self._module)
        recorder = self._record()
        self._layers, self._shapes = recorder.layers, tuple(recorder.shapes)
        self._kept: KeyValuePages | None = None
        self._graphs: DecodeGraphs | None = None
        self._wants_graphs = self._device.type == "cuda" if graphs is None else graphs
        page_bytes = PAGE_TOKENS * dtype.itemsize * sum(shape.elements for shape in self._shapes)
        self.info = RunnerInfo(
            vocabulary=recorder.vocabulary,
            max_positions=positions,
            page_bytes=page_bytes,
            device=self._device.type,
            exact=self._device.type == "cpu" and _attention_is_exact(recorder, positions, dtype),
            details=_details(module, dtype, graphs=self._wants_graphs),
        )
        """`exact` speaks of attention alone, until who made the runner has measured the whole (`is_exact`)."""

    def allocate(self, pages: int) -> None:
        """See `DecoderRunner`. Another call lets go of what was there and begins anew."""
        self._kept, self._graphs = None, None
        self._kept = KeyValuePages(self._shapes, pages, device=self._device, dtype=self._dtype)
        if self._wants_graphs:
            self._graphs = DecodeGraphs(self.decode, self._device, spare_page=pages)

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """See `DecoderRunner`.

        Raises:
            ValueError: the step names tokens or positions that do not exist.
        """
        assert self._kept is not None, "allocate comes before run"
        _check_step(step, self.info)
        self._kept.open(opened_pages(step))
        if self._graphs is not None and self._graphs.fits(step):
            try:
                return self._graphs.run(step)
            except CaptureError as error:
                log.warning("steps are not captured as graphs: %s", error)
                self._graphs = None
        by = plan_pass(step, self._kept, self._layers, self._device)
        tokens, positions, wanted = (
            torch.from_numpy(array.astype(np.int64)).to(self._device, non_blocking=True)
            for array in (step.tokens, row_positions(step), step.wanted)
        )
        return self._forward(by, tokens, positions, wanted)

    def _forward(self, by: PagedPass, tokens: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        kept = {"logits_to_keep": wanted} if self._takes_wanted else {}
        with attending(by):
            answer = self._module(input_ids=tokens[None], position_ids=positions[None], use_cache=False, **kept)
        logits: Tensor = answer.logits[0] if self._takes_wanted else answer.logits[0, wanted]
        return logits.float()

    def decode(self, tokens: Tensor, paging: Mapping[str, Any]) -> Tensor:
        """A pass of one row for each sequence, of static shapes: what graphs capture. See `StaticInputs`."""
        assert self._kept is not None, "allocate comes before decode"
        by = PagedPass(self._kept, self._layers, **paging)
        positions = by.decodings[0].positions
        return self._forward(by, tokens, positions, torch.arange(len(tokens), device=self._device))

    @torch.inference_mode()
    def _record(self) -> _Recorder:
        recorder = _Recorder()
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self._device)
        with attending(recorder):
            answer = self._module(
                input_ids=ids, position_ids=torch.arange(2, device=self._device)[None], use_cache=False
            )
        recorder.vocabulary = answer.logits.shape[-1]
        if not recorder.shapes:
            raise UnsupportedAttentionError(f"{type(self._module).__name__} does not call the attention interface")
        return recorder


class _Recorder:
    """Stands in for attention once, and notes who attends in which shape."""

    def __init__(self) -> None:
        self.layers: dict[int, int] = {}
        self.shapes: list[LayerShape] = []
        self.groups: list[int] = []
        self.vocabulary = 0

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, _rules: Rules) -> Tensor:
        """See `Attending`."""
        if id(module) in self.layers:
            raise UnsupportedAttentionError("a layer attends more than once in a pass")
        self.layers[id(module)] = len(self.layers)
        self.shapes.append(LayerShape(k.shape[1], k.shape[2], v.shape[2]))
        self.groups.append(q.shape[1] // k.shape[1])
        return q.new_zeros(*q.shape[:2], v.shape[2])


def most_positions(config: Any) -> int:
    """The longest sequence that a model answers alike in any company.

    Raises:
        UnsupportedAttentionError: its configuration says nothing of positions.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise UnsupportedAttentionError("the configuration has no max_position_embeddings")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    for kind in kinds:
        if kind.get("rope_type") in _LENGTH_BOUND:
            positions = min(positions, kind.get("original_max_position_embeddings") or positions)
    return positions


def _check_forward(module: nn.Module) -> bool:
    """Whether the module can be told which logits are wanted.

    Raises:
        UnsupportedAttentionError: it cannot be told positions, or has layers that are no attention known here.
    """
    config: Any = module.config.get_text_config()  # type: ignore[operator, union-attr]
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS)
    if strange:
        raise UnsupportedAttentionError(f"it has layers of {', '.join(strange)}; known are full and sliding attention")
    parameters = inspect.signature(module.forward).parameters
    if "position_ids" not in parameters:
        raise UnsupportedAttentionError("the model cannot be told the positions of tokens")
    return "logits_to_keep" in parameters


def _use_paged_attention(module: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, paged_attention_interface)
    module.set_attn_implementation(_ATTENTION)
    if module.config._attn_implementation != _ATTENTION:
        raise UnsupportedAttentionError(f"{type(module).__name__} does not use transformers' attention interface")


def _attention_is_exact(recorder: _Recorder, positions: int, dtype: torch.dtype) -> bool:
    kinds = set(zip(recorder.shapes, recorder.groups, strict=True))
    return all(attends_exactly(shape, group, min(positions, _LONGEST_TRIED), dtype) for shape, group in kinds)


def _details(module: nn.Module, dtype: torch.dtype, *, graphs: bool) -> dict[str, Any]:
    return {
        "runner": "torch",
        "architecture": type(module).__name__,
        "kv": str(dtype).removeprefix("torch."),
        "cuda_graphs": graphs,
    }


def _check_step(step: Step, info: RunnerInfo) -> None:
    """On a GPU an id out of range would end the process."""
    if step.tokens.min() < 0 or step.tokens.max() >= info.vocabulary:
        raise ValueError(f"a token is not one of the {info.vocabulary} of the vocabulary")
    if (step.positions + np.diff(step.starts)).max() > info.max_positions:
        raise ValueError(f"a sequence is longer than {info.max_positions} tokens")
