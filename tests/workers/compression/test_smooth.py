"""SmoothQuant: the spread of activations goes into weights, and the answers stay."""

from __future__ import annotations

import pytest
import torch

from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.calibration import calibrate
from headrace_workers.compression.quantization.observers import ChannelMaxObserver
from headrace_workers.compression.quantization.smooth import Fold, exact_folds, smooth
from headrace_workers.compression.subject import Subject

from .conftest import TinySubject

LLAMA = {"num_key_value_heads": 1, "pad_token_id": 1}


def rows(subject: Subject, examples: Examples) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([subject.answers(batch).rows for batch in subject.batches(examples, 4)])


def silent(_what: str, _share: float) -> None:
    return


@pytest.fixture
def examples(tiny_texts: list[str]) -> Examples:
    return Examples(tiny_texts)


def test_norms_hand_their_spread_to_the_layers_behind_them(tiny_subject: TinySubject, examples: Examples) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", **LLAMA)
    norm = subject.module.get_submodule("model.layers.0.input_layernorm")
    with torch.no_grad():
        norm.weight[3] = 40.0  # type: ignore[operator]
    before = rows(subject, examples)
    spread = [_spread(subject, examples)]

    folds = smooth(subject, 0.5, examples, silent)
    spread.append(_spread(subject, examples))

    assert (
        Fold(
            "model.layers.0.input_layernorm",
            ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"),
        )
        in folds
    )
    assert spread[1] < spread[0] / 4
    assert float((rows(subject, examples) - before).norm() / before.norm()) < 1e-5


def test_values_are_scaled_through_attention_whose_heads_share_them(
    tiny_subject: TinySubject, examples: Examples
) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", **LLAMA)

    makers = {fold.maker.removeprefix("model.layers.1."): fold.readers for fold in exact_folds(subject, examples)}

    assert makers["self_attn.v_proj"] == ("model.layers.1.self_attn.o_proj",)
    assert makers["mlp.up_proj"] == ("model.layers.1.mlp.down_proj",)
    assert makers["post_attention_layernorm"] == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")


def test_where_a_residual_reads_a_norm_too_nothing_is_scaled(tiny_subject: TinySubject, examples: Examples) -> None:
    """BERT's norms feed the residual beside the layers; only what attention sums up can be scaled."""
    subject = tiny_subject("Bert")
    before = {name: tensor.clone() for name, tensor in subject.module.state_dict().items()}

    folds = exact_folds(subject, examples)

    assert {fold.maker for fold in folds} == {f"encoder.layer.{at}.attention.self.value" for at in (0, 1)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.module.state_dict().items()), (
        "trials leave traces"
    )


@pytest.mark.parametrize("make", ["Bert", "Roberta", "DistilBert", "ModernBert"])
def test_answers_stay_whatever_the_architecture(make: str, tiny_subject: TinySubject, examples: Examples) -> None:
    settings = {"intermediate_size": 96} if make == "ModernBert" else {}
    subject = tiny_subject(make, **settings)
    before = rows(subject, examples)

    assert smooth(subject, 0.7, examples, silent)

    assert float((rows(subject, examples) - before).norm() / before.norm()) < 1e-5


def _spread(subject: Subject, examples: Examples) -> float:
    """How much larger the largest channel is than the median one."""
    observer = ChannelMaxObserver()
    calibrate(subject, {"model.layers.0.self_attn.q_proj": observer}, examples, silent)
    return float(observer.largest.max() / observer.largest.median())
