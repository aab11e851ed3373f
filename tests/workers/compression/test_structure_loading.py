"""Pruned models, written down and loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Source, Structure, VariantContent, write_artifact
from headrace_workers.compression.data import Examples
from headrace_workers.compression.pruning.layout import layout_of
from headrace_workers.compression.pruning.structured import prune_structured
from headrace_workers.compression.pruning.unstructured import masks_of, prune
from headrace_workers.compression.recipe import Prune, PruneStructured
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.engines.base import Prepared
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source
from headrace_workers.models.structure import apply_structure

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Bert", "Model", {"num_hidden_layers": 4}),
    ("Roberta", "ForSequenceClassification", {"num_labels": 3, "num_hidden_layers": 4}),
    ("DistilBert", "Model", {"dim": 64, "num_hidden_layers": 4, "n_heads": 2, "hidden_dim": 128}),
    ("Llama", "ForCausalLM", GROUPED),
    ("Qwen2", "ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
]
any_make = pytest.mark.parametrize(("make", "head", "settings"), CASES, ids=[make for make, _, _ in CASES])


def pruned(subject: TextSubject, context: StageContext, *targets: str) -> TextSubject:
    for target in targets:
        stage = PruneStructured(target=target, ratio=0.5, scope="global", importance="weight")
        prune_structured(subject, stage, context)
    return subject


def written(subject: TextSubject, path: Path, structure: Structure | None = None) -> Path:
    folder = subject.source.folder
    tied = ("lm_head.weight",) if getattr(subject.config, "tie_word_embeddings", False) else ()
    tensors = {name: tensor for name, tensor in subject.module.state_dict().items() if name not in tied}
    write_artifact(
        path,
        task=subject.task,
        source=Source(name="tiny", sha256="0" * 64),
        files={
            name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
        },
        variants={"fp32": VariantContent(tensors, {}, structure or subject.structure)},
    )
    return path


def loaded(path: Path) -> TextSubject:
    source = find_source(path)
    subject = TextSubject(load_model(source, source.task(None), variant="fp32"), source)
    assert source.artifact is not None
    subject.structure = source.artifact.variant("fp32").structure
    return subject


@torch.no_grad()
def answers(subject: Subject, texts: list[str]) -> Tensor:
    return subject.answers(next(subject.batches(Examples(texts), len(texts)))).rows


# -- what is written is what is loaded --------------------------------------------------------------------------


@any_make
def test_a_pruned_model_answers_the_same_when_it_is_loaded(
    make: str,
    head: str,
    settings: dict[str, Any],
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
    tmp_path: Path,
) -> None:
    """Narrower FFNs of several widths, fewer heads and fewer blocks, bit for bit."""
    subject = tiny_subject(make, head, **settings)
    pruned(subject, context_of(subject), "heads", "ffn", "layers")

    again = loaded(written(subject, tmp_path / "artifact"))

    assert torch.equal(answers(again, tiny_texts), answers(subject, tiny_texts))
    assert len(layout_of(again.module).blocks) == 2
    assert {name: tuple(tensor.shape) for name, tensor in again.module.state_dict().items()} == {
        name: tuple(tensor.shape) for name, tensor in subject.module.state_dict().items()
    }


def test_it_is_pruned_further_after_loading(
    tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str], tmp_path: Path
) -> None:
    subject = tiny_subject("Bert", num_hidden_layers=4)
    once = loaded(written(pruned(subject, context_of(subject), "layers", "heads"), tmp_path / "once"))
    first = once.structure.layers["encoder.layer"]

    twice = pruned(once, context_of(once), "layers", "ffn")

    (left,) = twice.structure.layers.values()
    assert len(left) == 1
    assert set(left) < set(first)
    again = loaded(written(twice, tmp_path / "twice"))
    assert torch.equal(answers(again, tiny_texts), answers(twice, tiny_texts))


def test_zeros_are_still_known_after_loading(tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(amount=0.5), context_of(subject))

    again = loaded(written(subject, tmp_path / "artifact"))

    assert masks_of(again).keys() == masks_of(subject).keys()
    assert all(torch.equal(mask, masks_of(subject)[name]) for name, mask in masks_of(again).items())


@pytest.mark.parametrize(
    ("make", "settings"), [("Bert", {}), ("DistilBert", {"dim": 64, "n_heads": 2, "hidden_dim": 128})]
)
def test_an_engine_serves_it(
    make: str,
    settings: dict[str, Any],
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
    tmp_path: Path,
) -> None:
    subject = tiny_subject(make, **settings)
    pruned(subject, context_of(subject), "heads", "ffn")
    written(subject, tmp_path / "artifact")

    engine = EncoderEngine(tmp_path / "artifact", variant="fp32", precision="fp32")
    assert engine.info.details["packed"]

    items = [item for item in engine.prepare([(text, {}) for text in tiny_texts]) if isinstance(item, Prepared)]
    got = torch.stack([torch.tensor(answer.numpy()) for answer in engine.run(items)])
    torch.testing.assert_close(got, answers(subject, tiny_texts), rtol=2e-4, atol=2e-5)


def test_the_language_model_generates_after_loading(
    tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path
) -> None:
    subject = tiny_subject("Llama", "ForCausalLM", **GROUPED)
    again = loaded(written(pruned(subject, context_of(subject), "layers"), tmp_path / "artifact"))
    prompt = again.batch(["the mill wheel"]).inputs
    module: Any = again.module

    tokens = [
        module.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=use_cache).tolist()
        for use_cache in (True, False)
    ]

    assert tokens[0] == tokens[1]


# -- what a structure may not do ----------------------------------------------------------------------------------


ATTENTION = "encoder.layer.0.attention.self"


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"layers": {"encoder.layer": []}}, r"keeps \[\] of the 2 blocks"),
        ({"layers": {"encoder.layer": [0, 2]}}, r"keeps \[0, 2\] of the 2 blocks"),
        ({"layers": {"encoder.layer": [-1]}}, r"keeps \[-1\] of the 2 blocks"),
        ({"layers": {"encoder.layer": [1, 0]}}, r"keeps \[1, 0\] of the 2 blocks"),
        ({"layers": {"encoder.layer": [1, 1]}}, r"keeps \[1, 1\] of the 2 blocks"),
        ({"layers": {"encoder": [0]}}, "a BertEncoder, not a list"),
        ({"layers": {"encoder.blocks": [0]}}, "'encoder.blocks', a module that config.json does not make"),
        ({"attributes": {"decoder": {"n_heads": 1}}}, "'decoder', a module that config.json does not make"),
        ({"attributes": {ATTENTION: {"training": 1}}}, r"sets encoder.*self\.training; all it may set is"),
        ({"attributes": {ATTENTION: {"forward": 1}}}, r"self\.forward; all it may set is"),
        ({"attributes": {ATTENTION: {"n_heads": 1}}}, "a number that the module does not have"),
        ({"attributes": {ATTENTION: {"num_attention_heads": 0}}}, "to 0; it can be 1 to 2"),
        ({"attributes": {ATTENTION: {"num_attention_heads": 3}}}, "to 3; it can be 1 to 2"),
    ],
)
def test_a_structure_can_only_leave_things_out(
    structure: dict[str, Any], message: str, tiny_subject: TinySubject, tmp_path: Path
) -> None:
    """Whoever wrote an artifact, loading it sets nothing but numbers of heads, and those only lower."""
    path = written(tiny_subject("Bert"), tmp_path / "artifact", Structure(**structure))
    with pytest.raises(ArtifactError, match=message):
        load_model(find_source(path), "embedding", variant="fp32")


@pytest.mark.parametrize("shape", [(129, 64), (128, 65), (128,)])
def test_a_layer_wider_than_the_configuration_is_refused(shape: tuple[int, ...], tiny_subject: TinySubject) -> None:
    tensors = {"encoder.layer.0.intermediate.dense.weight": torch.zeros(shape)}
    with pytest.raises(ArtifactError, match=r"intermediate\.dense\.weight is .*config\.json says \[128, 64\], or less"):
        apply_structure(tiny_subject("Bert").module, Structure(), tensors)


def test_a_table_of_another_size_is_refused(tiny_subject: TinySubject, tmp_path: Path) -> None:
    """It would fail at some texts only."""
    subject = tiny_subject("Bert")
    module: Any = subject.module
    module.embeddings.word_embeddings = nn.Embedding(1100, 64)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_model(find_source(written(subject, tmp_path / "artifact")), "embedding", variant="fp32")


def test_the_configuration_of_others_stays_what_it_is(tiny_subject: TinySubject) -> None:
    subject = tiny_subject("Bert", num_hidden_layers=4)
    module: Any = subject.module
    shared = module.config
    apply_structure(module, Structure(layers={"encoder.layer": [1, 3]}), module.state_dict())
    assert (shared.num_hidden_layers, module.config.num_hidden_layers) == (4, 2)
    assert module.encoder.layer[0].attention.self.config is module.config
    assert json.loads((subject.source.folder / "config.json").read_text())["num_hidden_layers"] == 4
