"""Which neurons, heads and blocks go: by what they are worth, and by what a recipe lets go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.pruning.layout import layout_of
from headrace_workers.compression.pruning.structured import chosen_units, prune_structured
from headrace_workers.compression.recipe import PruneStructured
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Batch, ModuleSubject, Subject, TextSubject

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}


def first_batch(subject: Subject, texts: list[str]) -> Batch:
    return next(subject.batches(Examples(texts), len(texts)))


@torch.no_grad()
def answers(subject: Subject, texts: list[str]) -> Tensor:
    return subject.answers(first_batch(subject, texts)).rows


def linear(subject: Subject, name: str) -> nn.Linear:
    found = subject.module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


# -- which units go -------------------------------------------------------------------------------------------


def kept(scores: list[list[float]], **stage: Any) -> list[list[int]]:
    settings = PruneStructured(**{"target": "ffn", "round_to": 1, "min_keep": 0.01, **stage})
    return [units.tolist() for units in chosen_units([torch.tensor(score) for score in scores], settings)]


def test_the_least_important_go() -> None:
    assert kept([[3.0, 1.0, 4.0, 2.0], [1.0, 9.0, 2.0, 9.0]], ratio=0.5) == [[0, 2], [1, 3]]


def test_never_more_than_asked_for_goes() -> None:
    assert [len(units) for units in kept([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], ratio=0.5)] == [2, 2]
    assert len(kept([[float(unit) for unit in range(100)]], ratio=0.45)[0]) == 55, "floats say 55.00000000000001"


def test_over_all_layers_the_least_important_go_wherever_they_are() -> None:
    """Taylor's importance means the same in all layers; activations are compared in shares of their layer's mean."""
    scores = [[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]
    assert kept(scores, ratio=0.25, scope="global", importance="taylor") == [[2, 3], [0, 1, 2, 3]]
    assert kept(scores, ratio=0.25, scope="global") == [[1, 2, 3], [1, 2, 3]]


def test_a_layer_keeps_its_least() -> None:
    scores = [[0.1, 0.2, 0.3, 0.4], [10.0, 20.0, 30.0, 40.0]]
    stage: dict[str, Any] = {"ratio": 0.5, "scope": "global", "importance": "taylor"}
    assert kept(scores, min_keep=0.5, **stage) == [[2, 3], [2, 3]]
    assert kept(scores, min_keep=0.25, **stage) == [[3], [1, 2, 3]]


def test_a_threshold_is_a_share_of_the_layers_mean() -> None:
    assert kept([[1.0, 2.0, 3.0, 6.0], [30.0, 30.0, 29.0, 31.0]], threshold=0.8) == [[2, 3], [0, 1, 2, 3]]
    assert kept([[0.1, 0.1, 0.1, 100.0]], threshold=0.5, min_keep=0.5) == [[0, 3]]


def test_ffn_widths_are_rounded_up_to_what_kernels_like() -> None:
    scores = [[float(unit) for unit in range(100)]]
    assert len(kept(scores, ratio=0.5, round_to=16)[0]) == 64
    assert len(kept(scores, ratio=0.01, round_to=16)[0]) == 100, "never to more than there were"
    assert kept([[1.0, 2.0, 3.0]], ratio=0.5, round_to=16, target="heads") == [[1, 2]], "heads are not rounded"


@pytest.mark.parametrize(
    ("target", "of", "ratio", "min_keep", "most"),
    [("heads", 4, 0.8, 0.01, "0.75"), ("ffn", 100, 0.8, 0.25, "0.75"), ("heads", 12, 0.95, 0.01, "0.916")],
)
def test_a_ratio_that_leaves_too_little_is_refused(
    target: Any, of: int, ratio: float, min_keep: float, most: str
) -> None:
    stage = PruneStructured(target=target, ratio=ratio, min_keep=min_keep)
    with pytest.raises(StageError, match=f"the largest possible is {most}"):
        chosen_units([torch.ones(of)], stage)


# -- importance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["weight", "activation", "taylor"])
@pytest.mark.parametrize(("make", "head"), [("Bert", "Model"), ("Llama", "ForCausalLM")])
def test_neurons_that_do_nothing_go_first(
    make: str, head: str, importance: Any, tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]
) -> None:
    subject = tiny_subject(make, head)
    for ffn in layout_of(subject.module).ffns:
        for name in ffn.inputs:
            linear(subject, name).weight[5::4] = 0
            if linear(subject, name).bias is not None:
                linear(subject, name).bias[5::4] = 0
        linear(subject, ffn.output).weight[:, 5::4] *= 0.01
    before = answers(subject, tiny_texts)

    pruned = prune_structured(
        subject, PruneStructured(target="ffn", importance=importance, ratio=31 / 128, round_to=1), context_of(subject)
    )

    assert layout_of(pruned.module).ffns[0].width == 97
    torch.testing.assert_close(answers(pruned, tiny_texts), before, rtol=1e-4, atol=1e-4)


def test_a_block_that_does_nothing_goes_first(
    tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]
) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", **GROUPED)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        linear(subject, f"model.layers.2.{name}").weight.zero_()
    before = answers(subject, tiny_texts)

    pruned = prune_structured(subject, PruneStructured(target="layers", threshold=0.01), context_of(subject))

    assert pruned.structure.layers == {"model.layers": [0, 1, 3]}
    torch.testing.assert_close(answers(pruned, tiny_texts), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("labels", "stays"), [([0] * 64, [0.0, 1.0]), (None, [1.0, 0.0])])
def test_labels_decide_what_taylor_finds_important(labels: list[int] | None, stays: list[float]) -> None:
    """The first neuron moves the answer more, but between classes that are both wrong."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)
    first.weight = nn.Parameter(torch.eye(2))
    second.weight = nn.Parameter(torch.tensor([[0.0, 0.1], [0.2, 0.0], [-0.2, 0.0]]))
    inputs = list(torch.rand(64, 2, generator=torch.Generator().manual_seed(0)))
    data = Examples(inputs, labels)
    subject = ModuleSubject(nn.Sequential(first, nn.ReLU(), second))

    pruned = prune_structured(
        subject,
        PruneStructured(target="ffn", importance="taylor", ratio=0.5, round_to=1),
        StageContext(subject, Split(data, data, data)),
    )

    assert linear(pruned, "0").weight.tolist() == [stays]
