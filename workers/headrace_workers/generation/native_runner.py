"""The runner for Llama-shaped models on CPUs: weights in int8 or few bits, one native call a step.

A module is taken over if it is one of the classes known here, its layers are quantized in ways that the kernels have,
and its sizes fit; `native_refusal` says why not. Everything else goes to the torch runner.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace_workers.compression.quantization.quantize import round_to_nearest
from headrace_workers.generation.runner import PAGE_TOKENS, RunnerInfo, Step
from headrace_workers.kernels.block import activation_of
from headrace_workers.kernels.decoder import (
    PAGE,
    DecoderLayer,
    DecoderWeights,
    NativeDecoder,
    interleaved,
    joined,
    joining_misfit,
)
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.library import support
from headrace_workers.kernels.selection import AnyWeight
from headrace_workers.kernels.weights import Activation, Int8Weight

__all__ = ["NativeRunner", "native_refusal"]

assert PAGE == PAGE_TOKENS, "a page is the same in the kernel and in the plans"

_CLASSES: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ANGLES: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embeddings whose angles do not depend on how long a sequence has become."""
_LANES: Final = 16
_MOST_POSITIONS: Final = 1 << 17


def native_refusal(module: nn.Module) -> str:
    """Why the module cannot run natively on this node; empty if it can."""
    native = support()
    if not native.isas:
        return native.reason
    if type(module).__name__ not in _CLASSES:
        return f"{type(module).__name__} is not one of {', '.join(_CLASSES)}"
    return _misfit(module)


class NativeRunner:
    """Computes steps in one native call each. See `DecoderRunner`.

    Linear layers that were never quantized are rounded to int8, output by output.

    Args:
        module: a transformers model for causal language modelling, on the CPU, its quantized layers not yet released.
            It is read only, and may be let go of afterwards.
        threads: None: as many as torch uses.
        max_positions: the longest sequence; None: what the model was made for.
        fine: whether the inputs of int8 layers keep about 16 bits in place of 8.

    Raises:
        ValueError: the module cannot run natively; the message is `native_refusal`'s.
    """

    def __init__(
        self,
        module: nn.Module,
        threads: int | None = None,
        *,
        max_positions: int | None = None,
        fine: bool = True,
    ) -> None:
        if problem := native_refusal(module):
            raise ValueError(problem)
        model: Any = module
        positions = min(max_positions or _MOST_POSITIONS, int(model.config.max_position_embeddings), _MOST_POSITIONS)
        self._decoder = NativeDecoder(_weights(model, positions), fine=fine)
        self._threads = threads
        self._pages = self._wanted = 0
        self._info = RunnerInfo(
            vocabulary=self._decoder.vocabulary,
            max_positions=positions,
            page_bytes=self._decoder.page_bytes,
            device="cpu",
            exact=True,
            details=_details(self._decoder),
        )

    @property
    def info(self) -> RunnerInfo:
        """What was loaded."""
        return self._info

    def allocate(self, pages: int) -> None:
        """See `DecoderRunner`."""
        self._decoder.allocate(pages)
        self._pages = pages

    def run(self, step: Step) -> Tensor:
        """See `DecoderRunner`.

        Raises:
            ValueError: the step names tokens, pages or positions that do not exist.
            MemoryError: there is none for what lies between layers.
        """
        self._check(step)
        self._wanted = len(step.wanted)
        return self._decoder.run(
            _int32(step.tokens),
            _int32(step.starts),
            _int32(step.positions),
            _int32(step.pages),
            _int32(step.wanted),
            threads=self._threads or torch.get_num_threads(),
        )

    @property
    def best(self) -> list[int]:
        """See `DecoderRunner`."""
        return self._decoder.best(self._wanted)

    def _check(self, step: Step) -> None:
        """What is not there would be read from, or written to, memory that is not ours."""
        counts = np.diff(step.starts)
        ends = step.positions + counts
        if step.starts[0] != 0 or step.starts[-1] != len(step.tokens) or counts.min(initial=1) < 1:
            raise ValueError("starts must rise from 0 to the number of rows")
        if not _within(step.tokens, self._info.vocabulary):
            raise ValueError(f"a token is not one of the {self._info.vocabulary} of the vocabulary")
        if not _within(step.positions, self._info.max_positions) or not _within(ends, self._info.max_positions + 1):
            raise ValueError(f"a sequence is longer than {self._info.max_positions} tokens")
        if not _within(step.wanted, len(step.tokens)):
            raise ValueError("a wanted row is not in the step")
        needed = -(-ends // PAGE_TOKENS)
        if needed.max(initial=0) > step.pages.shape[1]:
            raise ValueError("a sequence has fewer pages than its tokens need")
        used = np.arange(step.pages.shape[1]) < needed[:, None]
        if not _within(np.where(used, step.pages, 0), self._pages):
            raise ValueError(f"a page is not one of the {self._pages} that were allocated")


def _int32(array: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(array, dtype=np.int32)


def _within(numbers: NDArray[Any], end: int) -> bool:
    return not numbers.size or bool(numbers.min() >= 0 and numbers.max() < end)


def _misfit(module: Any) -> str:
    """Why a module of a known class does not fit the kernel; empty if it does."""
    if module.model.rotary_emb.rope_type not in _FIXED_ANGLES:
        return f"rotary embeddings of type {module.model.rotary_emb.rope_type!r} depend on a sequence's length"
    if not isinstance(module.model.embed_tokens, nn.Embedding | QuantizedEmbedding):
        return f"its embeddings are a {type(module.model.embed_tokens).__name__}"
    for number, layer in enumerate(module.model.layers):
        if problem := _layer_misfit(layer):
            return f"layer {number}: {problem}"
    return _linear_misfit(module.lm_head)


def _layer_misfit(layer: Any) -> str:
    attention, mlp = layer.self_attn, layer.mlp
    linears = _linears(layer)
    for linear in linears:
        if problem := _linear_misfit(linear):
            return problem
    if len({type(linear) is nn.Linear for linear in linears}) > 1:
        return "some of its weights were left in floating point, which the native kernels would round"
    if attention.head_dim % _LANES:
        return f"heads of {attention.head_dim} values; {_LANES} must divide that"
    if mlp.down_proj.in_features % _LANES:
        return f"a feed-forward of {mlp.down_proj.in_features}; {_LANES} must divide that"
    if activation_of(mlp.act_fn) is not Activation.SILU:
        return "its activation is not SiLU"
    return _joining_misfit(attention, mlp)


def _joining_misfit(attention: Any, mlp: Any) -> str:
    for linears in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        quantized = [_weight(linear) for linear in linears if type(linear) is not nn.Linear]
        if quantized and (problem := joining_misfit(quantized)):
            return problem
    return ""


def _linears(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _linear_misfit(linear: nn.Module) -> str:
    if type(linear) is nn.Linear:
        return ""
    if not isinstance(linear, CompressedLinear | AffineLinear):
        return f"a layer is a {type(linear).__name__}"
    return "" if linear.source is not None else "its weights were released to other kernels"


def _weight(linear: Any) -> AnyWeight:
    """The weight of a layer, rounded to int8 if it is a plain one."""
    if isinstance(linear, CompressedLinear | AffineLinear):
        assert linear.source is not None, "native_refusal saw to it"
        return linear.source
    values, scale = round_to_nearest(linear.weight)
    return Int8Weight(values, scale, None if linear.bias is None else linear.bias.detach().float())


def _weights(model: Any, positions: int) -> DecoderWeights:
    inner, table = model.model, model.model.embed_tokens
    int8 = isinstance(table, QuantizedEmbedding)
    cosines, sines = _angles(inner.rotary_emb, positions)
    return DecoderWeights(
        layers=(_layer(layer, model.config, positions) for layer in inner.layers),
        table=table.values if int8 else table.weight.detach().float(),
        table_scale=table.scale if int8 else None,
        final_norm=inner.norm.weight,
        head=_weight(model.lm_head),
        cosines=cosines,
        sines=sines,
        head_dim=inner.layers[0].self_attn.head_dim,
        eps=inner.norm.variance_epsilon,
    )


def _layer(layer: Any, config: Any, positions: int) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value = (_weight(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
    return DecoderLayer(
        qkv=joined([query, key, value]),
        out=_weight(attention.o_proj),
        up=interleaved(_weight(mlp.gate_proj), _weight(mlp.up_proj)),
        down=_weight(mlp.down_proj),
        attention_norm=layer.input_layernorm.weight,
        feed_forward_norm=layer.post_attention_layernorm.weight,
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        heads=query.shape.outputs // attention.head_dim,
        kv_heads=key.shape.outputs // attention.head_dim,
        window=_window(attention, config, positions),
    )


def _window(attention: Any, config: Any, positions: int) -> int:
    """How many tokens a token of this layer sees, itself included; 0: all."""
    of = config if config.model_type == "mistral" else attention
    window = getattr(of, "sliding_window", None)
    return 0 if window is None or window >= positions else int(window)


def _angles(rotary: Any, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each position, as the module itself computes them: float32 [positions, head_dim / 2]."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rotary.inv_freq.float()[None]
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


def _details(decoder: NativeDecoder) -> dict[str, Any]:
    native = support()
    return {
        "runner": "native",
        "isa": str(native.best),
        "isa_reason": native.reason,
        "products": dict(decoder.products),
        "kv": "fp16",
    }
