"""The native runner: steps go in, the logits of the very model come out, the same bits however a text is cut."""

from __future__ import annotations

import copy
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from headrace_workers.compression.quantization.convert import nearest
from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.compression.quantization.layers import linear_layer
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.compression.recipe import ActivationScheme, WeightScheme
from headrace_workers.generation.native_runner import NativeRunner, native_refusal
from headrace_workers.generation.runner import PAGE_TOKENS, Step
from headrace_workers.kernels.layers import prepare_layers
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer
from support.waiting import eventually_sync

SIZES: dict[str, Any] = {
    "vocab_size": 1100,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
LARGE_HEADS = {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}
WINDOW = 37
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama_of_large_heads": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES | LARGE_HEADS, head_dim=80, attention_bias=True)
    ),
    "llama_with_long_context": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
}

pytestmark = pytest.mark.skipif(not support().isas, reason=support().reason)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def made(family: str) -> Any:
    """A tiny model whose every weight, norms and biases included, makes a difference."""
    torch.manual_seed(5)
    module = FAMILIES[family]().eval()
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        elif name.endswith("bias"):
            parameter.copy_(torch.randn_like(parameter) / 4)
    return module


def in_int8(module: nn.Module) -> nn.Module:
    quantize_model(module, left_alone=())
    return module


def in_4_bits(module: nn.Module, group: int | None = 32, *, symmetric: bool = True) -> nn.Module:
    """Weights in 4 bits, inputs in floating point."""
    scheme = WeightScheme(bits=4, group=group, symmetric=symmetric, activations=ActivationScheme(kind="none"))
    for name, part in list(module.named_modules()):
        if type(part) is nn.Linear:
            module.set_submodule(name, linear_layer(nearest(part, scheme)))
    return module


def runner_of(module: nn.Module, pages: int = 64) -> NativeRunner:
    runner = NativeRunner(module)
    runner.allocate(pages)
    return runner


class Text:
    """A sequence with its pages, that hands its tokens to steps."""

    def __init__(self, tokens: list[int], first_page: int, pages: int = 8) -> None:
        self.tokens = tokens
        # in no order, as a pool gives them
        self.pages = list(range(first_page, first_page + pages))[::-1]
        self.computed = 0
        self.logits: list[Tensor] = []

    @property
    def left(self) -> int:
        return len(self.tokens) - self.computed


def some_text(length: int, first_page: int = 0, seed: int = 0) -> Text:
    chance = random.Random(seed)
    return Text([chance.randrange(SIZES["vocab_size"]) for _ in range(length)], first_page)


def step(parts: list[tuple[Text, int]]) -> Step:
    """The next `count` tokens of each text, the logits of all of them asked for."""
    tokens = [token for text, count in parts for token in text.tokens[text.computed :][:count]]
    return Step(
        tokens=np.array(tokens, np.int32),
        starts=np.cumsum([0, *(count for _, count in parts)], dtype=np.int32),
        positions=np.array([text.computed for text, _ in parts], np.int32),
        pages=np.array([text.pages for text, _ in parts], np.int32),
        wanted=np.arange(len(tokens), dtype=np.int32),
    )


def advance(runner: NativeRunner, parts: list[tuple[Text, int]]) -> None:
    logits = runner.run(step(parts)).clone()
    for (text, count), rows in zip(parts, torch.split(logits, [count for _, count in parts]), strict=True):
        text.logits.append(rows)
        text.computed += count


def at_once(runner: NativeRunner, text: Text) -> Tensor:
    """The logits of every row, the text computed alone in one step."""
    advance(runner, [(text, text.left)])
    return torch.cat(text.logits)


def test_a_text_in_one_step(isa: Isa) -> None:
    if isa is Isa.NONE:
        assert "HEADRACE_ISA" in native_refusal(made("llama"))
        return
    runner = runner_of(made("llama"))
    logits = runner.run(
        Step(
            tokens=np.array([17, 4, 300], np.int32),
            starts=np.array([0, 3], np.int32),
            positions=np.array([0], np.int32),
            pages=np.array([[5]], np.int32),
            wanted=np.array([2], np.int32),
        )
    )
    assert logits.shape == (1, runner.info.vocabulary)
    assert runner.info.exact


@pytest.mark.parametrize("family", FAMILIES)
def test_few_bit_weights_give_the_logits_of_the_plain_model(family: str) -> None:
    """Nothing is rounded on the way but keys and values, to fp16."""
    module = in_4_bits(made(family))
    plain = copy.deepcopy(module)
    expand_model(plain)
    text = some_text(150)
    expected = plain(torch.tensor([text.tokens])).logits[0]

    torch.testing.assert_close(at_once(runner_of(module), text), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_give_the_logits_of_the_int8_model(family: str) -> None:
    """Both round their inputs to int8; what rounds differently at a step's edge is all that keeps them apart."""
    module = in_int8(made(family))
    reference: Any = copy.deepcopy(module)
    prepare_layers(reference, KernelTable("int8"))
    text = some_text(150)
    expected = reference(torch.tensor([text.tokens])).logits[0]

    logits = at_once(runner_of(module), text)

    assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.998
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("family", ["llama", "mistral", "llama_of_large_heads"])
@pytest.mark.parametrize("weights", [in_int8, in_4_bits])
def test_neither_cuts_nor_company_nor_threads_change_a_bit(
    family: str, weights: Callable[[nn.Module], nn.Module], threads: Callable[[int], None]
) -> None:
    runner = runner_of(weights(made(family)))
    alone = [at_once(runner, some_text(length, seed=length)) for length in (200, 41, 1, 130, 66)]
    chance = random.Random(1)
    for attempt in range(6):
        threads(1 + attempt % 2)
        most = (2, 9, 40, 256)[attempt % 4]
        texts = [some_text(len(rows), 8 * i, seed=len(rows)) for i, rows in enumerate(alone)]
        while any(text.left for text in texts):
            going = [text for text in texts if text.left and chance.random() < 0.7]
            parts = [(text, min(text.left, chance.randint(1, most))) for text in going]
            if parts:
                advance(runner, parts)
        for text, expected in zip(texts, alone, strict=True):
            assert torch.equal(torch.cat(text.logits), expected)


@pytest.mark.parametrize("weights", [in_int8, in_4_bits])
def test_all_instruction_sets_give_the_same_bits(
    weights: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, answers = weights(made("qwen3")), []
    for isa in support().isas:
        monkeypatch.setenv("HEADRACE_ISA", isa)
        answers.append(at_once(runner_of(module), some_text(140)))

    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_many_sequences_decode_together(threads: Callable[[int], None]) -> None:
    """As many as a thread takes rows of its own, all at positions of their own."""
    runner = runner_of(in_int8(made("llama")), pages=80 * 2)
    texts = [Text(some_text(3 + i % 40, seed=i).tokens, 2 * i, pages=2) for i in range(80)]
    for text in texts:
        advance(runner, [(text, text.left - 1)])

    threads(1)
    alone = [runner.run(step([(text, 1)])).clone() for text in texts]
    advance(runner, [(text, 1) for text in texts])

    assert all(torch.equal(text.logits[-1], row) for text, row in zip(texts, alone, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_token_of_each_row_is_known(threads: Callable[[int], None], count: int) -> None:
    """The first of those that are equally good, whichever thread computed it."""
    module = made("llama")
    head = module.lm_head.weight
    head[1000:1100] = head[:100]  # every one of the first hundred has a twin that another thread computes
    head[40] = head[37]
    threads(count)
    runner = runner_of(in_int8(module))
    logits = runner.run(step([(some_text(70), 70)]))
    assert runner.best == [int(row.numpy().argmax()) for row in logits]
    assert set(runner.best) & set(range(100)), "none of the twins was the best"


def test_a_row_that_is_no_number_is_not_taken_for_a_good_one(threads: Callable[[int], None]) -> None:
    module = made("llama")
    module.model.norm.weight[:] = float("nan")
    threads(2)
    runner = runner_of(in_int8(module))
    logits = runner.run(step([(some_text(5), 5)]))
    assert logits.isnan().any()
    assert runner.best == [int(row.numpy().argmax()) for row in logits]


def allowed_cores() -> list[set[int]]:
    """Where each thread of this process may run."""
    cores = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            cores.append(os.sched_getaffinity(int(task.name)))
    return cores


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_leaves_its_threads_where_they_were(threads: Callable[[int], None], count: int) -> None:
    """What its caller starts afterwards may run on all cores."""
    threads(count)
    before = os.sched_getaffinity(0)
    runner_of(in_int8(made("llama"))).run(step([(some_text(70), 70)]))
    assert all(cores == before for cores in allowed_cores())


def test_a_step_with_all_cores_keeps_each_thread_to_one(threads: Callable[[int], None]) -> None:
    """Else a neighbour who wakes may push two of them together, and they wait for each other."""
    cores = os.sched_getaffinity(0)
    threads(len(cores))
    runner, over = runner_of(in_int8(made("llama"))), threading.Event()

    def steps() -> None:
        while not over.is_set():
            runner.run(step([(some_text(70), 70)]))

    running = threading.Thread(target=steps)
    running.start()
    try:
        eventually_sync(lambda: {frozenset({core}) for core in cores} <= {frozenset(held) for held in allowed_cores()})
    finally:
        over.set()
        running.join()


def test_only_wanted_rows_are_answered() -> None:
    runner, text = runner_of(in_int8(made("llama"))), some_text(70)
    every = at_once(runner, text)
    text.computed = 0
    asked = step([(text, 70)])

    wanted = np.array([0, 33, 69], np.int32)
    some = runner.run(Step(asked.tokens, asked.starts, asked.positions, asked.pages, wanted)).clone()
    none = runner.run(Step(asked.tokens, asked.starts, asked.positions, asked.pages, wanted[:0]))

    assert torch.equal(some, every[torch.from_numpy(wanted).long()])
    assert none.shape == (0, runner.info.vocabulary)


def test_what_others_left_in_a_page_is_not_looked_at() -> None:
    """Pages come back from sequences that were poisoned, and are not wiped."""
    runner, text = runner_of(in_int8(made("llama"))), some_text(45)
    clean = at_once(runner, text)
    runner._decoder._pages.view(torch.int16).fill_(0x7E00)  # NaN, in fp16

    assert torch.equal(at_once(runner, some_text(45)), clean)


def test_a_shared_prefix_is_computed_once() -> None:
    runner = runner_of(in_int8(made("llama")))
    first = some_text(100)
    at_once(runner, first)
    other = Text(first.tokens[:64] + some_text(30, seed=9).tokens, 8)
    alone = at_once(runner, other)

    shared = Text(other.tokens, 16)
    shared.pages[:2], shared.computed = first.pages[:2], 2 * PAGE_TOKENS

    assert torch.equal(at_once(runner, shared), alone[64:])


def broken(**changes: Any) -> Step:
    good = step([(some_text(40), 40)])
    return Step(**{name: changes.get(name, getattr(good, name)) for name in Step.__slots__})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": np.full(40, 1100, np.int32)}, "vocabulary"),
        ({"tokens": np.full(40, -1, np.int32)}, "vocabulary"),
        ({"starts": np.array([0, 41], np.int32)}, "starts"),
        ({"positions": np.array([250], np.int32)}, "longer than 256"),
        ({"pages": np.array([[3]], np.int32)}, "fewer pages"),
        ({"pages": np.array([[3, 64]], np.int32)}, "not one of the 64"),
        ({"pages": np.array([[3, -1]], np.int32)}, "not one of the 64"),
        ({"wanted": np.array([40], np.int32)}, "wanted"),
    ],
)
def test_a_step_that_names_what_is_not_there_is_refused(changes: dict[str, Any], problem: str) -> None:
    runner = runner_of(in_int8(made("llama")))

    with pytest.raises(ValueError, match=problem):
        runner.run(broken(**changes))


def test_memory_that_is_not_there_is_a_named_error() -> None:
    with pytest.raises(MemoryError, match="no memory for"):
        NativeRunner(made("llama")).allocate(1 << 48)


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    assert "GPT2LMHeadModel" in native_refusal(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2)))
    narrow = LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=8))
    assert "heads of 8" in native_refusal(narrow)
    gelu = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert "SiLU" in native_refusal(gelu)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert "dynamic" in native_refusal(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))
    mixed = in_4_bits(made("llama"))
    mixed.set_submodule("model.layers.1.mlp.down_proj", nn.Linear(112, 64, bias=False))
    assert "layer 1: some of its weights" in native_refusal(mixed)
    released = in_int8(made("llama"))
    prepare_layers(released, KernelTable("int8"))
    assert "released" in native_refusal(released)
    with pytest.raises(ValueError, match="heads of 8"):
        NativeRunner(narrow)


def test_a_real_model_goes_on_with_sense(smollm2: Path) -> None:
    source = find_source(smollm2)
    module: Any = load_model(source, "causal_lm").module
    tokens = load_tokenizer(source, 64)(["The capital of France is"])[0].ids.tolist()
    expected = module.generate(torch.tensor([tokens]), max_new_tokens=12, do_sample=False)[0].tolist()
    quantize_model(module)
    runner, text = runner_of(module), Text(tokens, 0)

    while len(text.tokens) < len(expected):
        advance(runner, [(text, text.left)])
        text.tokens.append(int(text.logits[-1][-1].argmax()))

    assert text.tokens[:10] == expected[:10]
