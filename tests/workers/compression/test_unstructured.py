"""Single weights set to zero, and kept there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from headrace.errors import StageError
from headrace_workers.artifacts.artifact import Source, VariantContent, open_artifact, write_artifact
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.pruning.unstructured import best_of_each, hold_zeros, masks_of, prune, wanda_mask
from headrace_workers.compression.recipe import Prune
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import ModuleSubject, Subject, TextSubject

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

UP = "encoder.layer.1.intermediate.dense"


def weight_of(subject: Subject, name: str = UP) -> Tensor:
    weight = subject.module.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


# -- as a tutorial ------------------------------------------------------------------------------------------


def test_half_of_each_matrix_becomes_zero(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Nothing of torch's masking is left: the model is as it was, with zeros in it. The stage says what that is for."""
    subject = tiny_subject("Bert")
    names, context = set(subject.module.state_dict()), context_of(subject)

    pruned = prune(subject, Prune(amount=0.5), context)

    assert zeros(weight_of(pruned)) == 0.5
    assert set(pruned.module.state_dict()) == names
    assert len(pruned.structure.pruned) == 12
    assert "50.0% of the weights of 12 modules" in context.notes[0]
    assert "shrinks to 0.80 of its size" in context.notes[0]
    assert "get no faster" in context.notes[0]


def test_the_file_really_shrinks_and_nothing_is_lost(
    tiny_subject: TinySubject, context_of: ContextOf, tmp_path: Path
) -> None:
    """With the tables, which are most of this model."""

    def written(subject: Subject, name: str) -> int:
        content = VariantContent(subject.module.state_dict(), {}, subject.structure)
        source = Source(name="tiny", sha256="0" * 64)
        write_artifact(tmp_path / name, task="embedding", source=source, files={}, variants={"fp32": content})
        return sum(file.stat().st_size for file in (tmp_path / name / "blobs").iterdir())

    subject = tiny_subject("Bert")
    dense = written(subject, "dense")

    pruned = prune(subject, Prune(amount=0.5, embeddings=True), context_of(subject))

    assert written(pruned, "sparse") <= 0.56 * dense
    artifact = open_artifact(tmp_path / "sparse")
    for name, tensor in artifact.tensors(artifact.variant("fp32")).items():
        assert torch.equal(tensor, pruned.module.state_dict()[name])


def test_zeros_stay_zero_in_training(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Fifty steps of AdamW with weight decay; without `hold_zeros` they would all be gone after the first."""
    pruned = prune(tiny_subject("Bert"), Prune(amount=0.5), context_of(tiny_subject("Bert")))
    masks, before = masks_of(pruned), weight_of(pruned).clone()
    unheld = pruned.clone()

    def trained(subject: Subject) -> None:
        optimizer = torch.optim.AdamW(subject.module.parameters(), lr=1e-3, weight_decay=0.1)
        batch = next(subject.batches(context_of(subject).data.train, 4))
        for _ in range(50):
            optimizer.zero_grad()
            subject.answers(batch).rows.square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    pruned.module.requires_grad_(True)
    with hold_zeros(pruned.module, masks):
        trained(pruned)
        assert all(zeros(weight_of(pruned, name)) >= 0.5 for name in masks)
    unheld.module.requires_grad_(True)
    trained(unheld)

    assert not torch.equal(weight_of(pruned), before), "what is not zero is trained"
    assert zeros(weight_of(unheld)) == 0.0


# -- which weights go -----------------------------------------------------------------------------------------


def test_l1_is_torchs_own(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject, reference = tiny_subject("Bert"), tiny_subject("Bert")
    linear = reference.module.get_submodule(UP)
    torch_prune.l1_unstructured(linear, "weight", amount=0.3)  # type: ignore[no-untyped-call]

    prune(subject, Prune(amount=0.3), context_of(subject))

    assert torch.equal(masks_of(subject)[UP], linear.weight_mask.bool())  # type: ignore[operator]


def test_over_all_matrices_the_smallest_go(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    subject.module.get_submodule(UP).weight.mul_(1e-3)  # type: ignore[operator]

    prune(subject, Prune(method="global_l1", amount=0.4), context_of(subject))

    assert zeros(weight_of(subject)) == 1.0
    whole = torch.cat([weight_of(subject, name).flatten() for name in subject.structure.pruned])
    assert zeros(whole) == pytest.approx(0.4, abs=1e-4)


def test_a_threshold_is_a_magnitude(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    before = weight_of(subject).clone()
    prune(subject, Prune(method="threshold", threshold=0.1), context_of(subject))
    assert torch.equal(weight_of(subject), before.where(before.abs() >= 0.1, 0.0))


def test_random_is_the_same_for_the_same_seed(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    def pruned(seed: int, **stage: Any) -> Tensor:
        subject = tiny_subject("Bert")
        context = context_of(subject)
        context.seed = seed
        return weight_of(prune(subject, Prune(method="random", **stage), context))

    for stage in ({"amount": 0.5}, {"pattern": "1:2"}):
        torch.manual_seed(len(stage))
        assert torch.equal(pruned(1, **stage), pruned(1, **stage))
        assert not torch.equal(pruned(1, **stage), pruned(2, **stage))
        assert zeros(pruned(1, **stage)) == 0.5


def test_wanda_asks_what_comes_in(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Each output loses the weights whose product with their input's norm, over all tokens, is smallest."""
    subject, untouched = tiny_subject("Bert"), tiny_subject("Bert")
    context = context_of(subject)
    rows: list[Tensor] = []
    for batch in untouched.batches(context.data.train, 3):
        hook = untouched.module.get_submodule(UP).register_forward_pre_hook(
            lambda _module, arguments, valid=batch.valid: rows.append(arguments[0][valid])
        )
        untouched.answers(batch)
        hook.remove()
    scores = weight_of(untouched).abs() * torch.cat(rows).norm(dim=0)

    prune(subject, Prune(method="wanda", amount=0.25), context)

    mask = masks_of(subject)[UP]
    assert (mask.sum(1) == 48).all()
    gone, left = scores.masked_fill(mask, 0).amax(1), scores.masked_fill(~mask, torch.inf).amin(1)
    assert (gone <= left).all()


def test_wanda_by_hand() -> None:
    weight, norms = torch.tensor([[4.0, -3.0, 2.0, 1.0]]), torch.tensor([0.1, 1.0, 1.0, 10.0])
    assert wanda_mask(weight, norms, 0.5).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("method", ["l1", "global_l1", "wanda", "random"])
def test_two_of_four(method: Any, tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(method=method, pattern="2:4"), context_of(subject))
    assert ((weight_of(subject).reshape(-1, 4) != 0).sum(1) == 2).all()


def test_two_of_four_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]])
    assert best_of_each(scores, 2, 4).int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]


# -- zeros, and what else there is ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [{"amount": 0.5}, {"method": "wanda", "amount": 0.5}, {"pattern": "2:4"}])
def test_a_zero_is_a_zero_and_not_minus_zero(
    stage: dict[str, Any], tiny_subject: TinySubject, context_of: ContextOf
) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(**stage), context_of(subject))
    assert not weight_of(subject)[weight_of(subject) == 0].signbit().any()


def test_a_pruned_model_can_be_copied(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(amount=0.5), context_of(subject))
    assert torch.equal(weight_of(subject.clone()), weight_of(subject))
    assert masks_of(subject.clone()).keys() == masks_of(subject).keys()
    copy.deepcopy(subject.module)


def test_zeros_are_right_again_after_who_ever_touched_them(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(amount=0.5), context_of(subject))
    masks = masks_of(subject)
    with hold_zeros(subject.module, masks):
        subject.module.get_submodule(UP).weight.add_(1.0)  # type: ignore[operator]
    assert torch.equal(weight_of(subject) != 0, masks[UP])


def test_pruned_twice_what_was_zero_stays_zero(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(amount=0.5), context_of(subject))
    first = masks_of(subject)[UP]
    prune(subject, Prune(amount=0.7), context_of(subject))
    assert zeros(weight_of(subject)) == pytest.approx(0.7, abs=1e-3)
    assert not (masks_of(subject)[UP] & ~first).any()


def test_tied_weights_are_the_tables_and_stay_tied(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    def tied() -> TextSubject:
        return tiny_subject("Llama", "ForCausalLM", tie_word_embeddings=True)

    subject = prune(tied(), Prune(amount=0.5), context_of(tied()))
    assert zeros(weight_of(subject, "lm_head")) == 0.0

    subject = prune(tied(), Prune(amount=0.5, embeddings=True), context_of(tied()))
    module: Any = subject.module
    assert zeros(weight_of(subject, "lm_head")) == pytest.approx(0.5)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert "lm_head" not in subject.structure.pruned


def test_what_is_left_alone_is_left_alone(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    prune(subject, Prune(amount=0.5, left_alone=["*.intermediate.*"]), context_of(subject))
    assert zeros(weight_of(subject)) == 0.0
    assert len(subject.structure.pruned) == 10


def test_a_model_that_was_never_pruned_has_no_masks(tiny_subject: TinySubject) -> None:
    assert masks_of(tiny_subject("Bert")) == {}


def test_a_module_that_reads_no_text_is_pruned_too() -> None:
    subject = ModuleSubject(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)))
    data = Examples(list(torch.rand(40, 64)))
    prune(subject, Prune(method="wanda", amount=0.5), StageContext(subject, Split(data, data, data)))
    assert [zeros(weight_of(subject, name)) for name in ("0", "2")] == [0.5, 0.5]


# -- what is refused ------------------------------------------------------------------------------------------


def test_a_pattern_that_does_not_fit_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match="rows of 64, which pattern 2:7 does not divide; put it in left_alone"):
        prune(subject, Prune(pattern="2:7"), context_of(subject))


def test_a_threshold_above_everything_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match="would lose all of its weights, the largest of which is 0"):
        prune(subject, Prune(method="threshold", threshold=100), context_of(subject))


def test_a_model_with_nothing_to_prune_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    with pytest.raises(StageError, match="no weights to prune"):
        prune(subject, Prune(amount=0.5, left_alone=["*"]), context_of(subject))


def test_weights_that_are_not_numbers_are_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    subject = tiny_subject("Bert")
    weight_of(subject)[0, 0] = float("inf")
    with pytest.raises(StageError, match=rf"{UP}\.weight holds numbers that are not finite"):
        prune(subject, Prune(amount=0.5), context_of(subject))
