"""The stage `quantize`: what a recipe says is what each layer gets, and what it cannot have is said by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.evaluation.prepared import prepared_copy
from headrace_workers.compression.quantization.quantize import quantize, quantize_model
from headrace_workers.compression.quantization.sensitivity import rank_layers, sensitivities
from headrace_workers.compression.recipe import ActivationScheme, Calibration, Quantize, WeightScheme
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import ModuleSubject, Subject
from headrace_workers.compression.watching import valid_rows
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding

from .conftest import ContextOf, TinySubject

NONE = ActivationScheme(kind="none")
STATIC = WeightScheme(activations=ActivationScheme(kind="static", observer="minmax"))
QUERY = "encoder.layer.0.attention.self.query"


def rows(subject: Subject, texts: list[str]) -> torch.Tensor:
    module = prepared_copy(subject)
    with torch.inference_mode():
        return torch.cat([subject.answers(batch, module=module).rows for batch in subject.batches(Examples(texts), 4)])


def distance(subject: Subject, stage: Quantize, context: StageContext, texts: list[str]) -> float:
    before = rows(subject, texts)
    after = rows(quantize(subject.clone(), stage, context), texts)
    return float((after - before).norm() / before.norm())


# -- what it is for ------------------------------------------------------------------------------------------


def test_a_recipe_that_says_nothing_is_int8(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """The same bits as engines make of a plain model when they load it."""
    subject, simple = tiny_subject("Bert"), tiny_subject("Bert").module
    context = context_of(subject)

    quantize(subject, Quantize(), context)
    quantize_model(simple)

    for name, layer in simple.named_modules():
        made: Any = subject.module.get_submodule(name)
        if isinstance(layer, CompressedLinear):
            assert layer.source is not None
            assert torch.equal(made.source.values, layer.source.values)
            assert torch.equal(made.source.scale, layer.source.scale)
    assert isinstance(subject.module.get_submodule("embeddings.word_embeddings"), QuantizedEmbedding)
    assert any(note.startswith("the worst layer is encoder.layer.") for note in context.notes)


def test_each_layer_gets_what_the_first_fitting_override_says(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    overrides = {
        "*.0.*.query": None,
        "*.query": WeightScheme(bits=4, group=16, symmetric=False, activations=NONE),
        "embeddings.position_embeddings": WeightScheme(),
    }

    quantize(subject, Quantize(overrides=overrides), context_of(subject))

    first, second = (subject.module.get_submodule(f"encoder.layer.{at}.attention.self.query") for at in (0, 1))
    assert type(first) is nn.Linear
    assert isinstance(second, AffineLinear)
    assert second.source is not None
    assert (second.source.bits, second.source.group, second.source.zero is None) == (4, 16, False)
    assert isinstance(subject.module.get_submodule("embeddings.position_embeddings"), QuantizedEmbedding)


def test_more_bits_are_nearer(tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]) -> None:
    subject = tiny_subject("Bert")

    far = [
        distance(
            subject,
            Quantize(weights=WeightScheme(bits=bits, activations=NONE), embeddings="keep"),
            context_of(subject),
            tiny_texts,
        )
        for bits in (2, 4, 6, 8)
    ]

    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.02


def test_gptq_is_nearer_than_rounding(tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]) -> None:
    subject = tiny_subject("Bert")
    weights = WeightScheme(bits=3, activations=NONE)

    rtn, gptq = (
        distance(subject, Quantize(weights=weights, embeddings="keep", method=method), context_of(subject), tiny_texts)
        for method in ("rtn", "gptq")
    )

    assert gptq < 0.8 * rtn


def test_static_ranges_are_those_of_valid_positions(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Padding is computed, too, but means nothing and must widen no range."""
    subject = tiny_subject("Bert")
    texts = [str(text) for text in context_of(subject).data.train.inputs]
    alone = []
    handle = subject.module.get_submodule(QUERY).register_forward_pre_hook(lambda _m, given: alone.append(given[0]))
    with torch.inference_mode():
        for text in texts:
            subject.answers(subject.batch([text]))
    handle.remove()

    quantize(subject, Quantize(weights=STATIC), context_of(subject))

    layer = subject.module.get_submodule(QUERY)
    assert isinstance(layer, CompressedLinear)
    assert layer.source is not None
    assert layer.source.input_range is not None
    scale, zero_point = layer.source.input_range
    low, high = (float(end) for end in torch.cat([x.flatten() for x in alone]).aminmax())
    assert float(scale) == pytest.approx((high - low) / 255, rel=1e-3)
    assert int(zero_point) == pytest.approx(-low / float(scale), abs=1)


def test_padding_is_left_out_however_a_layer_gets_its_rows() -> None:
    valid = torch.tensor([[True, False], [True, True]])
    x = torch.arange(12.0).view(2, 2, 3)

    assert torch.equal(valid_rows(x, valid), x[valid])
    assert torch.equal(valid_rows(x.view(4, 3), valid), x[valid])
    assert torch.equal(valid_rows(x[:, 0], valid), x[:, 0]), "a pooler's rows are examples"


def test_a_head_goes_with_the_table_it_is_tied_to(tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=True, num_key_value_heads=1)

    report = quantize_model(subject.module)

    assert report.skipped == []
    assert report.schemes["lm_head"] == "int8_channel@model.embed_tokens"


def test_a_head_that_is_left_alone_keeps_its_table(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=True, num_key_value_heads=1)

    quantize(subject, Quantize(overrides={"lm_head": None}), context_of(subject))

    assert subject.module.get_parameter("lm_head.weight") is subject.module.get_parameter("model.embed_tokens.weight")


def test_weights_in_bf16_are_rounded_and_stay_plain(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")

    quantize(subject, Quantize(weights=WeightScheme(bits=16, dtype="bf16"), embeddings="fp16"), context_of(subject))

    weight = subject.module.get_submodule(QUERY).weight
    assert isinstance(weight, nn.Parameter)
    assert weight.dtype == torch.float32
    assert torch.equal(weight.bfloat16().float(), weight)


def test_what_was_pruned_stays_pruned(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    linear = subject.module.get_submodule(QUERY)
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight[linear.weight.abs() < 0.1] = 0
    pruned = linear.weight == 0
    subject.structure = subject.structure.model_copy(update={"pruned": [QUERY]})

    weights = WeightScheme(bits=4, symmetric=False, activations=NONE)
    quantize(subject, Quantize(weights=weights, method="gptq"), context_of(subject))

    layer = subject.module.get_submodule(QUERY)
    assert isinstance(layer, AffineLinear)
    assert layer.source is not None
    assert int(layer.source.dequantized()[pruned].count_nonzero()) == 0


def test_any_module_is_quantized_alike() -> None:
    torch.manual_seed(1)
    subject = ModuleSubject(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)))
    data = Examples(list(torch.randn(40, 64)), [0, 1, 2, 3] * 10)
    context = StageContext(subject, Split(data, data, data))

    quantize(subject, Quantize(weights=STATIC, method="gptq", smooth=0.5), context)

    assert [type(layer) for layer in subject.module.children()] == [CompressedLinear, nn.ReLU, CompressedLinear]
    assert any("SmoothQuant gained nothing" in note for note in context.notes)


# -- sensitivity ---------------------------------------------------------------------------------------------


def test_the_layer_that_matters_most_comes_first(tiny_subject: TinySubject, tiny_texts: list[str]) -> None:
    subject = tiny_subject("Bert")
    with torch.no_grad():
        weight: Any = subject.module.get_submodule(QUERY).weight
        weight[:, 0] *= 3000  # one column takes all levels of its rows
    schemes = {"int8": WeightScheme(), "4 bits": WeightScheme(bits=4, activations=NONE)}

    found = sensitivities(subject, Examples(tiny_texts), schemes)

    assert rank_layers(subject, Examples(tiny_texts))[0] == QUERY
    assert len(found) == 2 * 12
    assert found[0].divergence >= found[-1].divergence > 0
    by_scheme = {(one.module, one.scheme): one.divergence for one in found}
    other = "encoder.layer.1.output.dense"
    assert by_scheme[other, "4 bits"] > by_scheme[other, "int8"]
    assert type(subject.module.get_submodule(QUERY)) is nn.Linear, "the subject is as it was"


def test_sensitivity_to_static_ranges_is_not_asked_for(tiny_subject: TinySubject, tiny_texts: list[str]) -> None:
    with pytest.raises(StageError, match="without static"):
        sensitivities(tiny_subject("Bert"), Examples(tiny_texts), {"static": STATIC})


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named(value: float, tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with torch.no_grad():
        subject.module.get_parameter(f"{QUERY}.weight")[0, 0] = value

    with pytest.raises(StageError, match=rf"{QUERY}\.weight holds NaN"):
        quantize(subject, Quantize(), context_of(subject))


def test_an_override_that_fits_nothing_is_named(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match=r"override 'decoder\.\*' fits none"):
        quantize(subject, Quantize(overrides={"decoder.*": None}), context_of(subject))


def test_a_table_has_no_four_bits(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match="is an embedding table"):
        quantize(subject, Quantize(overrides={"*word*": WeightScheme(bits=4)}), context_of(subject))


def test_a_model_without_linear_layers_is_refused() -> None:
    subject = ModuleSubject(nn.Sequential(nn.ReLU()))
    data = Examples(list(torch.randn(9, 4)))
    with pytest.raises(StageError, match="no linear layers"):
        quantize(subject, Quantize(), StageContext(subject, Split(data, data, data)))


def test_a_value_too_large_for_fp16_is_named(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with torch.no_grad():
        subject.module.get_parameter(f"{QUERY}.weight")[0, 0] = 1e5

    with pytest.raises(StageError, match=rf"{QUERY}\.weight has values that fp16 cannot hold"):
        quantize(subject, Quantize(weights=WeightScheme(bits=16, dtype="fp16")), context_of(subject))


@pytest.mark.parametrize("stage", [Quantize(method="gptq"), Quantize(weights=STATIC), Quantize(smooth=0.5)])
def test_too_little_to_calibrate_with(stage: Quantize, tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Bert")
    few = Examples(["one", "two"])
    with pytest.raises(CompressionDataError, match="2 examples to calibrate with; it takes 8"):
        quantize(subject, stage, StageContext(subject, Split(few, few, few)))
    few_samples = stage.model_copy(update={"calibration": Calibration(samples=3)})
    enough = Examples(["text"] * 9)
    with pytest.raises(CompressionDataError, match="with 3 samples"):
        quantize(subject, few_samples, StageContext(subject, Split(enough, enough, enough)))


def test_without_data_the_worst_layer_is_told_by_its_weights(tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Bert")
    none = Examples([])
    context = StageContext(subject, Split(none, none, none))

    quantize(subject, Quantize(), context)

    assert any("weights at" in note for note in context.notes)


def test_an_activation_that_is_not_finite_is_told_of_its_layer(
    tiny_subject: TinySubject, context_of: ContextOf
) -> None:
    subject = tiny_subject("Bert")
    with torch.no_grad():
        subject.module.get_parameter("embeddings.LayerNorm.weight").fill_(3e38)

    with pytest.raises(StageError, match=r"what comes into encoder\.layer\.\S+ cannot be calibrated with"):
        quantize(subject, Quantize(weights=STATIC), context_of(subject))
