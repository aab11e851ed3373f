"""What files hold: codes in their bits, sparse tensors without zeros, tied weights once; and all of it loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Artifact, Source, Structure, VariantContent, sha256_of, write_artifact
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.prepared import prepared_copy
from headrace_workers.compression.quantization.quantize import quantize
from headrace_workers.compression.recipe import ActivationScheme, Quantize, WeightScheme
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.schemes import LayerScheme, parse_scheme
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source

from .conftest import ContextOf, TinySubject

NONE = ActivationScheme(kind="none")
LLAMA = {"num_key_value_heads": 1}


def write(path: Path, content: VariantContent, files: Mapping[str, bytes] | None = None, **changed: Any) -> Artifact:
    settings: dict[str, Any] = {"task": "embedding", "source": Source(name="tests", sha256="0" * 64)}
    return write_artifact(path, files=files or {"config.json": b"{}"}, variants={"made": content}, **settings | changed)


def stored(subject: TextSubject, path: Path) -> TextSubject:
    """The subject, written and loaded again."""
    folder = subject.source.folder
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    write(path, contents_of(subject), files, task=subject.task)
    loaded = load_model(find_source(path), subject.task, variant="made")
    back = subject.with_module(loaded.module)
    back.structure = subject.structure
    return back


def answers(subject: Subject, texts: list[str]) -> Tensor:
    module = prepared_copy(subject)
    with torch.inference_mode():
        return torch.cat([subject.answers(batch, module=module).rows for batch in subject.batches(Examples(texts), 4)])


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


# -- what they are for ---------------------------------------------------------------------------------------


def test_half_of_the_weights_are_little_more_than_half_of_the_file(tmp_path: Path) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    pruned = torch.where(weight.abs() < weight.abs().median(), 0.0, weight)
    write(tmp_path / "dense", VariantContent({"a.weight": weight}, {}))

    sparse = write(tmp_path / "sparse", VariantContent({"a.weight": pruned}, {}))

    assert size_of(sparse.path) <= 0.56 * size_of(tmp_path / "dense")
    variant = sparse.variant("made")
    assert variant.encodings["a.weight"].kind == "bitmask"
    assert torch.equal(sparse.tensors(variant)["a.weight"], pruned)


def test_four_bits_take_four_bits(tmp_path: Path) -> None:
    codes = torch.randint(0, 16, (256, 256), dtype=torch.uint8)

    made = write(tmp_path / "made", VariantContent({"a.weight": codes}, {}, bits={"a.weight": 4}))

    assert size_of(made.path) < 256 * 128 + 300
    assert torch.equal(made.tensors(made.variant("made"))["a.weight"], codes)


def test_what_would_get_no_smaller_stays_as_it_is(tmp_path: Path) -> None:
    tensors = {"dense": torch.ones(64, 64), "small": torch.zeros(8)}

    made = write(tmp_path / "made", VariantContent(tensors, {}))

    assert made.variant("made").encodings == {}


def test_structure_is_kept(tmp_path: Path) -> None:
    structure = Structure(layers={"encoder.layer": [0, 2]}, pruned=["a"])

    made = write(tmp_path / "made", VariantContent({"a.weight": torch.ones(1)}, {}, structure))

    assert made.variant("made").structure == structure


SCHEMES = {
    "int8": Quantize(),
    "static": Quantize(weights=WeightScheme(activations=ActivationScheme(kind="static"))),
    "3 bits in groups": Quantize(weights=WeightScheme(bits=3, group=24, activations=NONE), embeddings="keep"),
    "4 bits with zeros": Quantize(weights=WeightScheme(bits=4, symmetric=False, activations=NONE), embeddings="fp16"),
    "8 bits by group": Quantize(weights=WeightScheme(bits=8, group=16), overrides={"*.query": None}),
    "bf16": Quantize(weights=WeightScheme(bits=16, dtype="bf16"), embeddings="fp16"),
}


@pytest.mark.parametrize("stage", SCHEMES.values(), ids=SCHEMES)
def test_what_was_quantized_answers_the_same_when_it_is_loaded(
    stage: Quantize, tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str], tmp_path: Path
) -> None:
    subject = tiny_subject("Bert", "ForSequenceClassification", num_labels=3)
    quantize(subject, stage, context_of(subject))

    back = stored(subject, tmp_path / "made")

    assert torch.equal(answers(back, tiny_texts), answers(subject, tiny_texts))


def test_files_shrink_with_bits(tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path) -> None:
    sizes = []
    for bits in (8, 4, 2):
        subject = tiny_subject("Bert")
        quantize(subject, Quantize(weights=WeightScheme(bits=bits, activations=NONE)), context_of(subject))
        stored(subject, tmp_path / str(bits))
        sizes.append(size_of(tmp_path / str(bits)))

    assert sizes == sorted(sizes, reverse=True)


def test_scales_of_groups_take_two_bytes_and_nothing_is_lost(
    tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path
) -> None:
    subject = tiny_subject("Bert")
    stage = Quantize(weights=WeightScheme(bits=4, group=16, symmetric=False, activations=NONE))
    quantize(subject, stage, context_of(subject))

    scale = contents_of(subject).tensors["encoder.layer.0.output.dense.weight_scale"]
    back = stored(subject, tmp_path / "made").module.get_submodule("encoder.layer.0.output.dense")

    assert (scale.dtype, scale.shape) == (torch.float16, (64, 8))
    assert isinstance(back, AffineLinear)
    assert back.source is not None
    assert torch.equal(back.source.scale, scale.float())


# -- tied weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activations", ["none", "dynamic_token"])
def test_a_head_tied_to_its_table_is_stored_once(
    tied: bool,
    activations: Any,
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
    tmp_path: Path,
) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=tied, **LLAMA)
    stage = Quantize(weights=WeightScheme(activations=ActivationScheme(kind=activations)))
    quantize(subject, stage, context_of(subject))

    back = stored(subject, tmp_path / "made")

    names = contents_of(back).tensors
    assert ("lm_head.weight" in names) is not tied
    kind = AffineLinear if activations == "none" else CompressedLinear
    assert isinstance(back.module.get_submodule("lm_head"), kind) is tied, "a head of its own is left alone"
    assert isinstance(back.module.get_submodule("model.embed_tokens"), QuantizedEmbedding)
    assert torch.equal(answers(back, tiny_texts), answers(subject, tiny_texts))


@pytest.mark.parametrize("embeddings", ["keep", "fp16"])
def test_a_head_tied_to_a_plain_table_is_one_parameter_when_it_is_loaded(
    embeddings: Any, tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str], tmp_path: Path
) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=True, **LLAMA)
    quantize(subject, Quantize(embeddings=embeddings), context_of(subject))

    back = stored(subject, tmp_path / "made")

    assert back.module.get_parameter("lm_head.weight") is back.module.get_parameter("model.embed_tokens.weight")
    assert torch.equal(answers(back, tiny_texts), answers(subject, tiny_texts))


def test_a_tied_model_that_nothing_was_done_to_is_stored_too(
    tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    """A stage's result before quantization is kept in the same way."""
    subject = tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=True, **LLAMA)

    back = stored(subject, tmp_path / "made")

    assert torch.equal(answers(back, tiny_texts), answers(subject, tiny_texts))


# -- what is broken ------------------------------------------------------------------------------------------


def broken_encoding(change: Callable[[dict[str, Any]], None], path: Path) -> Artifact:
    """An artifact whose one variant's description was changed by somebody who also changed the manifest."""
    codes, sparse = torch.randint(0, 16, (64, 64), dtype=torch.uint8), torch.eye(64)
    made = write(path, VariantContent({"a": codes, "b": sparse}, {}, bits={"a": 4}))
    file = path / "variants" / "made.json"
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["variants/made.json"] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return made


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("a", {"bits": 3}, "cannot be decoded"),
        ("a", {"shape": [64, 1 << 30]}, "cannot be decoded"),
        ("a", {"shape": []}, "cannot be decoded"),
        ("a", {"kind": "bitmask"}, "does not hold a.bitmask"),
        ("b", {"shape": [1 << 30, 1 << 30]}, "cannot be decoded"),
        ("b", {"shape": [0, 64]}, "cannot be decoded"),
        ("b", {"kind": "bits"}, "does not hold b"),
    ],
)
def test_an_encoding_that_does_not_fit_is_named(
    name: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = broken_encoding(lambda described: described["encodings"][name].update(changed), tmp_path / "made")

    with pytest.raises(ArtifactError, match=message):
        made.tensors(made.variant("made"))


@pytest.mark.parametrize(
    ("layer", "changed", "message"),
    [
        ("weight_scale", torch.ones(3), "must be torch.float32"),
        ("weight_scale", torch.ones(64).double(), "must be torch.float32"),
        ("bias", torch.zeros(1), r"must be torch.float32 \[64\]"),
        ("input_scale", torch.zeros(1), "inputs of scale 0"),
        ("input_zero_point", torch.tensor([300], dtype=torch.int32), "zero at 300"),
    ],
)
def test_tensors_that_kernels_would_trip_over_are_refused(
    layer: str, changed: Tensor, message: str, tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path
) -> None:
    subject = tiny_subject("Bert")
    quantize(subject, SCHEMES["static"], context_of(subject))
    content = contents_of(subject)
    tensors = {**content.tensors, f"encoder.layer.0.attention.self.query.{layer}": changed}
    config = (subject.source.folder / "config.json").read_bytes()
    write(tmp_path / "made", VariantContent(tensors, content.layers), {"config.json": config})

    with pytest.raises(ArtifactError, match=message):
        load_model(find_source(tmp_path / "made"), "embedding", variant="made")


# -- schemes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int8_row", LayerScheme("int8_row")),
        ("int8_channel", LayerScheme("int8_channel")),
        ("int8_channel_static", LayerScheme("int8_channel", static=True)),
        ("affine4_group32_zero", LayerScheme("affine", 4, 32, zero=True)),
        ("affine8@model.embed_tokens", LayerScheme("affine", 8, table="model.embed_tokens")),
    ],
)
def test_schemes_are_words(text: str, scheme: LayerScheme) -> None:
    assert parse_scheme(text) == scheme
    assert str(scheme) == text


@pytest.mark.parametrize("text", ["", "int4", "affine9", "affine1", "affine4_group0", "int8_row_static", "affine4@"])
def test_other_words_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="no scheme is called"):
        parse_scheme(text)
