"""Neurons, heads and blocks cut out of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.pruning.layout import Attention, Ffn, layout_of
from headrace_workers.compression.pruning.structured import cut_blocks, cut_units, prune_structured
from headrace_workers.compression.recipe import PruneStructured
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Batch, ModuleSubject, Subject, TextSubject

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Bert", "Model", {}),
    ("Roberta", "ForSequenceClassification", {"num_labels": 3}),
    ("Bert", "ForTokenClassification", {}),
    ("DistilBert", "Model", {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}),
    ("Llama", "ForCausalLM", GROUPED),
    ("Qwen2", "ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
]
any_make = pytest.mark.parametrize(
    ("make", "head", "settings"), CASES, ids=[f"{make}{head}" for make, head, _ in CASES]
)


def first_batch(subject: Subject, texts: list[str]) -> Batch:
    return next(subject.batches(Examples(texts), len(texts)))


@torch.no_grad()
def answers(subject: Subject, texts: list[str]) -> Tensor:
    return subject.answers(first_batch(subject, texts)).rows


def size(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.module.parameters())


def linear(subject: Subject, name: str) -> nn.Linear:
    found = subject.module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


# -- as a tutorial ------------------------------------------------------------------------------------------


def test_half_of_the_neurons_go(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """The layers are really narrower, and the stage says what that came to."""
    subject = tiny_subject("Bert")
    before, context = size(subject), context_of(subject.clone())

    pruned = prune_structured(subject, PruneStructured(target="ffn", ratio=0.5), context)

    assert linear(pruned, "encoder.layer.0.intermediate.dense").out_features == 64
    assert linear(pruned, "encoder.layer.0.output.dense").in_features == 64
    assert size(pruned) == before - 2 * 64 * (64 + 1 + 64)
    assert context.notes == [
        f"neurons left in each layer, of 128: 64, 64: {before:,} parameters became {size(pruned):,}"
    ]


def test_a_head_goes_with_its_queries_keys_and_values(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")

    pruned = prune_structured(subject, PruneStructured(target="heads", ratio=0.5), context_of(subject))

    shapes = {
        name: tuple(linear(pruned, f"encoder.layer.0.attention.{name}").weight.shape)
        for name in ("self.query", "self.key", "self.value", "output.dense")
    }
    assert shapes == {"self.query": (32, 64), "self.key": (32, 64), "self.value": (32, 64), "output.dense": (64, 32)}
    assert pruned.structure.attributes["encoder.layer.0.attention.self"] == {
        "num_attention_heads": 1,
        "all_head_size": 32,
    }


def test_blocks_go_and_what_is_left_is_written_down(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert", num_hidden_layers=4)

    pruned = prune_structured(subject, PruneStructured(target="layers", ratio=0.5), context_of(subject))

    (kept,) = pruned.structure.layers.values()
    assert len(kept) == len(layout_of(pruned.module).blocks) == 2
    assert isinstance(pruned, TextSubject)
    assert pruned.config.num_hidden_layers == 4, "the configuration describes what blocks are taken from"


# -- a cut model is the whole one with those units silenced ---------------------------------------------------


@any_make
@pytest.mark.parametrize("target", ["ffn", "heads"])
def test_cut_is_silenced(
    make: str, head: str, settings: dict[str, Any], target: str, tiny_subject: TinySubject, tiny_texts: list[str]
) -> None:
    cut, silenced = tiny_subject(make, head, **settings), tiny_subject(make, head, **settings)
    layout = layout_of(cut.module)
    parts: list[Ffn | Attention] = [*layout.ffns] if target == "ffn" else [*layout.attentions]
    kept = {part: torch.arange(place % 2, part.units, 2) for place, part in enumerate(parts)}  # others in each block
    for part, units in kept.items():
        gone = [unit for unit in range(part.units) if unit not in units.tolist()]
        weight = linear(silenced, part.output).weight
        weight.view(len(weight), part.units, -1)[:, gone] = 0

    whole = answers(cut, tiny_texts)
    cut_units(cut, kept)

    torch.testing.assert_close(answers(cut, tiny_texts), answers(silenced, tiny_texts), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers(cut, tiny_texts), whole, atol=1e-3), "nothing was cut that mattered"


@any_make
def test_a_dropped_block_is_a_skipped_one(
    make: str, head: str, settings: dict[str, Any], tiny_subject: TinySubject, tiny_texts: list[str]
) -> None:
    cut, skipping = tiny_subject(make, head, **settings), tiny_subject(make, head, **settings)
    layout = layout_of(cut.module)
    assert layout.path is not None
    block = skipping.module.get_submodule(layout.blocks[0].name)
    block.register_forward_hook(lambda _block, arguments, _output: arguments[0])

    cut_blocks(cut, layout.path, list(range(1, len(layout.blocks))))

    torch.testing.assert_close(answers(cut, tiny_texts), answers(skipping, tiny_texts), rtol=1e-5, atol=1e-5)


@any_make
@pytest.mark.parametrize("importance", ["weight", "activation", "taylor"])
@pytest.mark.parametrize("target", ["ffn", "heads"])
def test_every_importance_works_for_every_make(
    make: str,
    head: str,
    settings: dict[str, Any],
    target: Any,
    importance: Any,
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
) -> None:
    subject = tiny_subject(make, head, **settings)
    before = size(subject)
    stage = PruneStructured(target=target, importance=importance, ratio=0.5, scope="global", round_to=1)

    pruned = prune_structured(subject, stage, context_of(subject))

    assert size(pruned) < before
    assert bool(answers(pruned, tiny_texts).isfinite().all())
    assert not any(parameter.requires_grad for parameter in pruned.module.parameters())


def test_heads_that_share_keys_go_together(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", **GROUPED)

    pruned = prune_structured(subject, PruneStructured(target="heads", ratio=0.5), context_of(subject))

    assert linear(pruned, "model.layers.0.self_attn.q_proj").out_features == 2 * 16
    assert linear(pruned, "model.layers.0.self_attn.k_proj").out_features == 1 * 16
    assert linear(pruned, "model.layers.0.self_attn.o_proj").in_features == 2 * 16


@pytest.mark.parametrize("make", ["Llama", "Qwen2"])
def test_a_language_model_goes_on_generating_with_its_cache(make: str, tiny_subject: TinySubject) -> None:
    """The cache counts blocks: without its first one a model would never find out how long a text is."""
    subject = tiny_subject(make, "ForCausalLM", **GROUPED)
    cut_blocks(subject, "model.layers", [1, 3])
    model: Any = subject.module
    prompt = subject.batch(["the mill wheel turns when water"]).inputs

    def generated(*, use_cache: bool) -> list[int]:
        result = model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=use_cache)
        return [int(token) for token in result[0]]

    assert generated(use_cache=True) == generated(use_cache=False)
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]
    assert len(subject.answers(subject.batch(["the mill"]), hidden=True).hidden) == 3


def test_a_block_takes_its_kind_of_attention_along(tiny_subject: TinySubject, tiny_texts: list[str]) -> None:
    """Qwen's later blocks may see a window only, and the model asks its configuration which."""
    settings = {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    cut, skipping = (tiny_subject("Qwen2", "ForCausalLM", **settings) for _ in range(2))
    for name in ("model.layers.0", "model.layers.1"):
        skipping.module.get_submodule(name).register_forward_hook(lambda _block, arguments, _output: arguments[0])

    cut_blocks(cut, "model.layers", [2, 3])

    module: Any = cut.module
    assert module.config.layer_types == ["sliding_attention"] * 2
    assert cut.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    torch.testing.assert_close(answers(cut, tiny_texts), answers(skipping, tiny_texts), rtol=1e-5, atol=1e-5)


# -- what is pruned twice -------------------------------------------------------------------------------------


def test_blocks_pruned_twice_are_counted_from_the_first(tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Bert", num_hidden_layers=4)
    cut_blocks(subject, "encoder.layer", [0, 2, 3])
    cut_blocks(subject, "encoder.layer", [1, 2])
    assert subject.structure.layers == {"encoder.layer": [2, 3]}


def test_what_is_known_of_a_block_moves_with_it(tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Bert", num_hidden_layers=4)
    attentions = layout_of(subject.module).attentions
    cut_units(subject, {attentions[0]: torch.tensor([1]), attentions[2]: torch.tensor([0])})

    cut_blocks(subject, "encoder.layer", [1, 2])

    one_head = {"num_attention_heads": 1, "all_head_size": 32}
    assert subject.structure.attributes == {"encoder.layer.1.attention.self": one_head}


# -- modules of one's own, and what is refused ------------------------------------------------------------------


def test_a_module_that_reads_no_text_is_pruned_too() -> None:
    torch.manual_seed(0)
    subject = ModuleSubject(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 10)))
    data = Examples(list(torch.rand(40, 64)), [place % 10 for place in range(40)])

    stage = PruneStructured(target="ffn", importance="taylor", ratio=0.5, round_to=8)
    pruned = prune_structured(subject, stage, StageContext(subject, Split(data, data, data)))

    assert (linear(pruned, "0").out_features, linear(pruned, "3").in_features) == (24, 24)
    assert linear(pruned, "0").weight.requires_grad, "what was trainable stays so"
    for target, message in {"heads": "no key and value heads", "layers": "no list of blocks"}.items():
        with pytest.raises(StageError, match=message):
            prune_structured(
                subject, PruneStructured(target=target, ratio=0.5), StageContext(subject, Split(data, data, data))
            )


class Leaking(nn.Module):
    """Its neurons have another way out than the one it tells of."""

    prunable_pairs = (("first", "second"),)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        result: Tensor = self.second(hidden) + hidden.sum(1, keepdim=True)
        return result


def test_a_cut_that_is_not_what_it_seems_is_refused() -> None:
    subject = ModuleSubject(Leaking())
    data = Examples(list(torch.rand(20, 4)))
    with pytest.raises(StageError, match="something else in it uses them"):
        prune_structured(
            subject,
            PruneStructured(target="ffn", ratio=0.5, round_to=1),
            StageContext(subject, Split(data, data, data)),
        )


def test_heads_that_share_a_position_bias_are_left_alone(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("MPNet")
    with pytest.raises(StageError, match="heads of MPNetModel cannot be cut: all blocks of MPNet share one position"):
        prune_structured(subject, PruneStructured(target="heads", ratio=0.5), context_of(subject))
    prune_structured(subject, PruneStructured(target="ffn", ratio=0.5), context_of(subject))


@pytest.mark.parametrize("target", ["ffn", "heads", "layers"])
@pytest.mark.parametrize("importance", ["weight", "activation"])
def test_weights_that_are_not_numbers_are_refused(
    target: Any, importance: Any, tiny_subject: TinySubject, context_of: ContextOf
) -> None:
    subject = tiny_subject("Bert")
    for name in ("intermediate.dense", "attention.self.query"):
        linear(subject, f"encoder.layer.0.{name}").weight[3, 3] = float("nan")
    with pytest.raises(StageError, match="NaN weights"):
        prune_structured(subject, PruneStructured(target=target, importance=importance, ratio=0.5), context_of(subject))


def test_a_ratio_that_would_take_all_blocks_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match=r"of 2 layers.*largest possible is 0\.5"):
        prune_structured(subject, PruneStructured(target="layers", ratio=0.9), context_of(subject))
    with pytest.raises(StageError, match="without a single block"):
        cut_blocks(subject, "encoder.layer", [])
    with pytest.raises(StageError, match="without a single unit"):
        cut_units(subject, {layout_of(subject.module).ffns[0]: torch.tensor([], dtype=torch.int64)})


def test_a_ratio_too_small_to_cut_anything_is_told_of(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    context = context_of(subject)
    prune_structured(subject, PruneStructured(target="heads", ratio=0.1), context)
    assert context.notes == ["key and value heads left in each layer, of 2: 2, 2: nothing was gained"]
