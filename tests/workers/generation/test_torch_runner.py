"""The torch runner: any architecture of transformers, in steps over pages, answers as it does in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from headrace_workers.generation.cuda_graphs import StaticInputs, bucket_of
from headrace_workers.generation.key_value_pages import LayerShape, opened_pages
from headrace_workers.generation.runner import PAGE_TOKENS, Step
from headrace_workers.generation.runner_check import (
    allocate_for,
    attends_exactly,
    distance,
    greedy,
    halves,
    last_by_one,
    logits_by_module,
    logits_by_runner,
    probes_of,
)
from headrace_workers.generation.torch_runner import TorchRunner, most_positions
from headrace_workers.kernels.attention import UnsupportedAttentionError
from headrace_workers.models.loading import quiet_transformers

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
GEMMA: dict[str, Any] = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "GPT2": {},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "Phi": {},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    "Gemma3Text": GEMMA,
    "Mistral": {**GROUPED, "sliding_window": 20},
    "Qwen3": {**GROUPED, "head_dim": 16},
    "Cohere": {**GROUPED, "logit_scale": 0.3},
    "DeepseekV3": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 2,
    },
}
"""Positions learned and rotary, windows, softcaps, shared heads, values of another width than keys, scaled logits."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "GptOss": ({**GROUPED, "num_local_experts": 2}, "s_aux"),
    "Bloom": ({}, "positions"),
    "Falcon": ({}, "attention interface"),
    "Mamba": ({}, "linear_attention"),
}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_transformers():
        yield


def tiny(make: str, **settings: Any) -> Any:
    """A model with random weights large enough that its answers differ."""
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{make}Config")(**{**SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, 0.2)
    return model


def single_rows(pages: list[list[int]], positions: list[int], tokens: list[int]) -> Step:
    """A step that only decodes."""
    count = len(tokens)
    table = np.full((count, max(map(len, pages))), -1, np.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    every = np.arange(count + 1, dtype=np.int32)
    return Step(np.array(tokens, np.int32), every, np.array(positions, np.int32), table, every[:-1])


def filled(runner: TorchRunner, pages: list[list[int]], positions: list[int]) -> None:
    """Give sequences some past: `positions` tokens each."""
    starts = np.cumsum([0, *positions]).astype(np.int32)
    tokens = np.random.default_rng(2).integers(3, 120, starts[-1], dtype=np.int32)
    table = single_rows(pages, positions, [0] * len(pages)).pages
    runner.run(Step(tokens, starts, np.zeros(len(pages), np.int32), table, starts[1:] - 1))


def test_a_prompt_goes_in_and_a_text_comes_out() -> None:
    """A step says whose rows it has and in which pages; this is the smallest loop that can be written with it."""
    model = tiny("Llama", **GROUPED)
    prompt = [5, 17, 60, 9, 33]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=-1)[0].tolist()
    runner = TorchRunner(model)
    runner.allocate(2)

    text, computed = list(prompt), 0
    while len(text) < len(expected):
        rows = len(text) - computed
        step = Step(
            tokens=np.array(text[computed:], np.int32),
            starts=np.array([0, rows], np.int32),
            positions=np.array([computed], np.int32),
            pages=np.array([[1, 0]], np.int32),
            wanted=np.array([rows - 1], np.int32),
        )
        computed += rows
        text.append(int(runner.run(step)[0].argmax()))
    assert text == expected


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_in_pieces_and_in_company_it_answers_as_in_one_piece(make: str) -> None:
    """Prompts in halves, then tokens one by one, across pages and beyond windows; others beside it."""
    model = tiny(make, **ARCHITECTURES[make])
    probes = probes_of(120, 128, [20])
    expected = logits_by_module(model, probes)
    runner = TorchRunner(model)
    allocate_for(runner, probes)
    for cuts in (halves, last_by_one):
        assert distance(logits_by_runner(runner, probes, cuts), expected) < 1e-5
    assert runner.info.vocabulary == 120
    assert runner.info.max_positions == 128


@pytest.mark.parametrize("make", REFUSED)
def test_an_architecture_that_it_would_get_wrong_is_refused(make: str) -> None:
    """With sinks, positions of its own, attention of its own, or none at all."""
    settings, reason = REFUSED[make]
    with pytest.raises(UnsupportedAttentionError, match=reason):
        TorchRunner(tiny(make, **settings))


def test_keys_and_values_take_what_it_says() -> None:
    """Two layers, two heads of 16 numbers, keys and values, four bytes each."""
    assert TorchRunner(tiny("Llama", **GROUPED)).info.page_bytes == PAGE_TOKENS * 2 * 2 * 16 * 2 * 4


def test_no_logits_are_computed_where_none_are_wanted() -> None:
    """A chunk from the middle of a prompt."""
    runner = TorchRunner(tiny("Llama", **GROUPED))
    runner.allocate(1)
    step = single_rows([[0]], [0], [7])
    nothing = Step(step.tokens, step.starts, step.positions, step.pages, np.zeros(0, np.int32))
    assert runner.run(nothing).shape == (0, 120)
    assert runner.run(step).shape == (1, 120)


def test_a_page_that_held_nan_harms_nobody_after_it() -> None:
    """One job's overflow must not be another's."""
    runner = TorchRunner(tiny("Llama", **GROUPED))
    runner.allocate(2)
    filled(runner, [[0]], [9])
    step = single_rows([[0]], [9], [4])
    expected = runner.run(step)
    assert runner._kept is not None
    for tensor in (*runner._kept._keys, *runner._kept._values):
        tensor.fill_(float("nan"))
    filled(runner, [[0]], [9])
    assert torch.equal(runner.run(step), expected)


def test_pages_are_opened_by_their_first_token() -> None:
    """Of two sequences one begins a page in this step, and another goes on in one."""
    step = Step(
        tokens=np.zeros(36, np.int32),
        starts=np.array([0, 34, 36], np.int32),
        positions=np.array([31, 5], np.int32),
        pages=np.array([[4, 2, 9], [7, -1, -1]], np.int32),
        wanted=np.zeros(0, np.int32),
    )
    assert opened_pages(step).tolist() == [2, 9]


@pytest.mark.parametrize(
    ("tokens", "positions", "complaint"),
    [([120], [3], "vocabulary"), ([-1], [3], "vocabulary"), ([5], [128], "longer")],
)
def test_a_step_that_names_what_is_not_there_is_an_error(
    tokens: list[int], positions: list[int], complaint: str
) -> None:
    """On a GPU it would end the process."""
    runner = TorchRunner(tiny("Llama", **GROUPED))
    runner.allocate(5)
    with pytest.raises(ValueError, match=complaint):
        runner.run(single_rows([[0, 1, 2, 3, 4]], positions, tokens))


def test_angles_that_depend_on_the_longest_sequence_bound_the_length() -> None:
    """Beyond the length it was trained on, a Phi-3 would answer by who is beside it."""
    half = [1.0] * 8
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": half, "long_factor": [4.0] * 8}
    rope["original_max_position_embeddings"] = 64
    model = tiny("Phi3", **GROUPED, rope_parameters=rope, original_max_position_embeddings=64)
    assert most_positions(model.config) == 64
    assert TorchRunner(model).info.max_positions == 64


@pytest.mark.parametrize(
    ("shape", "group"),
    [(LayerShape(4, 64, 64), 1), (LayerShape(3, 64, 64), 3), (LayerShape(1, 128, 128), 8), (LayerShape(2, 24, 12), 2)],
)
def test_a_rows_attention_is_the_same_bits_in_any_chunk_and_company(shape: LayerShape, group: int) -> None:
    """Also over several blocks of keys."""
    assert attends_exactly(shape, group, 600)


def test_what_graphs_replay_is_what_a_step_computes() -> None:
    """The static inputs of a graph of four, filled with steps of three, on whatever device; here without the graph."""
    runner = TorchRunner(tiny("Llama", **GROUPED))
    runner.allocate(6)
    pages, positions = [[3, 0], [1, 5], [4]], [40, 32, 8]
    filled(runner, pages, positions)
    inputs: StaticInputs | None = None
    for turn in range(3):
        step = single_rows(pages, [at + turn for at in positions], [turn + 5, 60, 7])
        expected = runner.run(step)
        inputs = inputs or StaticInputs(bucket_of(step), torch.device("cpu"), spare_page=6)
        inputs.fill(step)
        with torch.inference_mode():
            got = runner.decode(inputs.tokens, inputs.paging)
        assert got.shape == (4, 120)
        assert distance([got[:3]], [expected]) < 1e-5


def test_a_greedy_continuation_stops_at_the_longest_sequence() -> None:
    """What loading asks for at the end, of a model that takes few tokens."""
    said, finite = greedy(TorchRunner(tiny("GPT2"), max_positions=6), np.array([5, 6, 7], np.int32), 10)
    assert len(said) == 3
    assert finite


@on_gpu
@pytest.mark.parametrize("make", ["Llama", "Gemma2", "GPT2"])
def test_on_a_gpu_graphs_answer_as_the_cpu_does(make: str) -> None:
    """Captured at the first step of a kind, replayed at the next."""
    model = tiny(make, **ARCHITECTURES.get(make, GROUPED))
    probes = probes_of(120, 128, [20])
    expected = logits_by_module(model, probes)
    for graphs in (False, True):
        runner = TorchRunner(model.to("cuda"), device="cuda", graphs=graphs)
        allocate_for(runner, probes)
        for _ in range(2):
            assert distance(logits_by_runner(runner, probes, last_by_one), expected) < 1e-3
