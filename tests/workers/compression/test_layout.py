"""Where in a model the parts are that can be cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.pruning.layout import layout_of
from headrace_workers.compression.subject import TextSubject

TinySubject = Callable[..., TextSubject]


def test_an_encoder_has_blocks_of_an_ffn_and_attention(tiny_subject: TinySubject) -> None:
    layout = layout_of(tiny_subject("Bert").module)

    assert layout.path == "encoder.layer"
    assert [block.name for block in layout.blocks] == ["encoder.layer.0", "encoder.layer.1"]
    ffn, attention = layout.ffns[1], layout.attentions[1]
    assert (ffn.inputs, ffn.output, ffn.width) == (
        ("encoder.layer.1.intermediate.dense",),
        "encoder.layer.1.output.dense",
        128,
    )
    assert attention.query == "encoder.layer.1.attention.self.query"
    assert attention.output == "encoder.layer.1.attention.output.dense"
    assert (attention.heads, attention.kv_heads, attention.head_size) == (2, 2, 32)
    assert (attention.units, attention.unit_width) == (2, 32)


def test_a_language_model_has_gates_and_heads_that_share_keys(tiny_subject: TinySubject) -> None:
    layout = layout_of(tiny_subject("Llama", "ForCausalLM", num_attention_heads=4, num_key_value_heads=2).module)

    assert layout.path == "model.layers"
    assert layout.ffns[0].inputs == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
    attention = layout.attentions[0]
    assert (attention.heads, attention.kv_heads, attention.head_size) == (4, 2, 16)
    assert (attention.units, attention.unit_width) == (2, 32)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        ("Roberta", {}),
        ("XLMRoberta", {}),
        ("Electra", {"embedding_size": 32}),
        ("DistilBert", {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}),
        ("MPNet", {}),
        ("Mistral", {"num_key_value_heads": 1}),
        ("Qwen2", {"num_key_value_heads": 1}),
        ("Qwen3", {"num_key_value_heads": 1, "head_dim": 32}),
    ],
)
def test_it_is_found_in_many_makes(make: str, settings: dict[str, Any], tiny_subject: TinySubject) -> None:
    layout = layout_of(tiny_subject(make, **settings).module)

    assert len(layout.blocks) == len(layout.ffns) == len(layout.attentions) == 2
    assert {ffn.width for ffn in layout.ffns} == {128}
    assert {(attention.heads, attention.head_size) for attention in layout.attentions} == {(2, 32)}


def test_mpnet_cannot_lose_heads(tiny_subject: TinySubject) -> None:
    assert "position bias" in layout_of(tiny_subject("MPNet").module).why_no_heads
    assert layout_of(tiny_subject("Bert").module).why_no_heads == ""


def test_a_chain_has_neurons_between_its_linear_layers() -> None:
    parts = [("one", nn.Linear(64, 48)), ("two", nn.ReLU()), ("three", nn.Linear(48, 32)), ("four", nn.GELU())]
    chain = nn.Sequential(OrderedDict([*parts, ("five", nn.Linear(32, 10))]))

    layout = layout_of(nn.ModuleDict({"net": chain}))

    assert [(ffn.inputs, ffn.output, ffn.width) for ffn in layout.ffns] == [
        (("net.one",), "net.three", 48),
        (("net.three",), "net.five", 32),
    ]
    assert layout.path is None
    assert layout.attentions == []


def test_what_mixes_neurons_breaks_a_chain() -> None:
    chain = nn.Sequential(nn.Linear(8, 8), nn.Softmax(dim=-1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert [ffn.output for ffn in layout_of(chain).ffns] == ["4"]


class Declaring(nn.Module):
    prunable_pairs = (("first", "second"),)

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 24), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu())
        return result


def test_a_module_can_tell_of_its_pairs() -> None:
    (ffn,) = layout_of(Declaring()).ffns
    assert (ffn.inputs, ffn.output, ffn.width) == (("first",), "second", 24)


def test_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StageError, match="'first' and 'second'"):
        layout_of(Declaring(width=23))


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Sequential(nn.Conv1d(1, 1, 1), nn.Linear(2, 2))])
def test_where_nothing_can_be_cut_it_says_what_was_looked_for(module: nn.Module) -> None:
    with pytest.raises(StageError, match=r"gate_proj.*nn\.Sequential.*prunable_pairs"):
        layout_of(module)


def test_fused_projections_are_not_taken_for_something_else(tiny_subject: TinySubject) -> None:
    """ModernBERT's queries, keys and values are one matrix, and so are its gate and its values."""
    subject = tiny_subject("ModernBert", intermediate_size=96, global_attn_every_n_layers=2, local_attention=24)
    with pytest.raises(StageError, match="ModernBertModel has nothing that can be cut"):
        layout_of(subject.module)
