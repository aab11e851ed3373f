"""How far a student is from its teacher, as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.distillation import losses as module
from headrace_workers.compression.distillation.losses import (
    ImitationLoss,
    Seen,
    cosine_distance,
    hidden_mse,
    relation_kl,
    similarity_kl,
    softened_kl,
)
from headrace_workers.compression.recipe import Losses
from headrace_workers.compression.subject import Answers

ALL = torch.ones(3, 5, dtype=torch.bool)


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator)


def test_two_classes_by_hand() -> None:
    """Teacher 3 : 1, student 1 : 1."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_temperature_softens_and_its_square_is_in_the_loss() -> None:
    """At T = 2 the odds 9 : 1 are 3 : 1."""
    teacher, student = torch.tensor([[math.log(9.0), 0.0]]), torch.zeros(1, 2)
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert softened_kl(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_who_answers_alike_is_no_distance_away(random: Callable[..., Tensor]) -> None:
    rows, hidden = random(4, 7), [random(3, 5, 8) for _ in range(3)]
    assert softened_kl(rows, rows + 5.0, 2.0).item() == pytest.approx(0.0, abs=1e-5)
    assert similarity_kl(rows, 3 * rows, 2.0).item() == pytest.approx(0.0, abs=1e-5)
    assert cosine_distance(rows, 2 * rows).item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_mse(hidden, hidden, ALL).item() == 0.0
    assert relation_kl(hidden[0], hidden[0], ALL).item() == 0.0


def test_gradients_are_as_large_at_any_temperature(random: Callable[..., Tensor]) -> None:
    """Small logits, whose gradient is (p − q) / T: without T² it would be a hundredth at T = 10."""
    teacher, student = 0.1 * random(16, 8), 0.1 * random(16, 8)
    norms = []
    for temperature in (1.0, 2.0, 5.0, 10.0):
        leaf = student.clone().requires_grad_()
        softened_kl(leaf, teacher, temperature).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        norms.append(leaf.grad.norm().item())
    assert max(norms) < 1.1 * min(norms)


def test_a_mean_over_rows(random: Callable[..., Tensor]) -> None:
    student, teacher = random(4, 7), random(4, 7)
    once, thrice = softened_kl(student, teacher, 2.0), softened_kl(student.repeat(3, 1), teacher.repeat(3, 1), 2.0)
    assert thrice.item() == pytest.approx(once.item(), rel=1e-5)


def test_large_vocabularies_go_in_parts(random: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and the same gradients."""

    def measured() -> tuple[float, Tensor]:
        leaf = student.clone().requires_grad_()
        loss = softened_kl(leaf, teacher, 2.0)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return loss.item(), leaf.grad

    student, teacher = random(10, 7), random(10, 7)
    whole, gradient = measured()
    monkeypatch.setattr(module, "_MOST_ELEMENTS", 21)
    parts, gradient_of_parts = measured()
    assert parts == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradient_of_parts, gradient)


def test_similarities_are_blind_to_how_a_space_is_turned(random: Callable[..., Tensor]) -> None:
    """And to its width: embeddings of 4 numbers, turned within 9, are the same neighbours."""
    embeddings = random(6, 4)
    turned = embeddings @ torch.linalg.qr(random(9, 4))[0].T
    assert similarity_kl(turned, embeddings, 1.0).item() == pytest.approx(0.0, abs=1e-4)
    assert similarity_kl(random(6, 9), embeddings, 1.0).item() > 0.1


def test_a_text_alone_is_like_nobody(random: Callable[..., Tensor]) -> None:
    assert similarity_kl(random(1, 4), random(1, 4), 1.0).item() == 0.0


def test_padding_says_nothing(random: Callable[..., Tensor]) -> None:
    student, narrower, valid = random(2, 5, 12), random(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    teacher = student + random(2, 5, 12)
    valid[0, 3:] = False
    before = relation_kl(student, narrower, valid), hidden_mse([student], [teacher], valid)
    student[0, 3:], narrower[0, 3:] = 100.0, -100.0
    after = relation_kl(student, narrower, valid), hidden_mse([student], [teacher], valid)
    torch.testing.assert_close(before, after)


def test_layers_are_matched_evenly() -> None:
    """Two layers of a student's, six of its teacher's: the third and the sixth, and embeddings with embeddings."""
    teacher = [torch.full((3, 5, 1), float(layer)) for layer in range(7)]
    assert hidden_mse([teacher[0], teacher[3], teacher[6]], teacher, ALL).item() == 0.0
    assert hidden_mse([teacher[0], teacher[1], teacher[6]], teacher, ALL).item() == pytest.approx(4 / 3)


def test_relations_of_other_widths(random: Callable[..., Tensor]) -> None:
    """Queries of 6 and of 9 numbers have three heads in common."""
    distance = relation_kl(random(3, 5, 6).requires_grad_(), random(3, 5, 9), ALL)
    assert distance.item() > 0
    assert distance.requires_grad


def seen(rows: Tensor, **more: object) -> Seen:
    return Seen(Answers(rows, **more))  # type: ignore[arg-type]


def test_the_sum_and_its_terms(random: Callable[..., Tensor]) -> None:
    student, teacher = seen(random(4, 3), targets=torch.tensor([0, 1, 2, 0])), seen(random(4, 3))
    wanted = Losses(logits=2.0, task=0.5, temperature=3.0)
    loss = ImitationLoss(wanted, embedding=False, student=student, teacher=teacher)
    terms = loss(student, teacher, torch.ones(4, 1, dtype=torch.bool))
    assert set(terms.parts) == {"logits", "task"}
    assert terms.parts["logits"] == pytest.approx(softened_kl(student.answers.rows, teacher.answers.rows, 3.0).item())
    assert terms.total.item() == pytest.approx(2 * terms.parts["logits"] + 0.5 * terms.parts["task"])


def test_an_embedding_of_another_width_is_projected(random: Callable[..., Tensor]) -> None:
    student, teacher = seen(random(4, 3)), seen(random(4, 6))
    loss = ImitationLoss(Losses(), embedding=True, student=student, teacher=teacher)
    assert set(loss(student, teacher, ALL).parts) == {"logits", "embedding"}
    assert [tuple(weight.shape) for weight in loss.parameters()] == [(6, 3)]
    same = ImitationLoss(Losses(), embedding=True, student=teacher, teacher=teacher)
    assert not list(same.parameters())


def test_hidden_states_of_another_width_are_projected(random: Callable[..., Tensor]) -> None:
    student = seen(random(3, 2), hidden=(random(3, 5, 4), random(3, 5, 4)))
    teacher = seen(random(3, 2), hidden=(random(3, 5, 8), random(3, 5, 8)))
    loss = ImitationLoss(Losses(hidden=1.0), embedding=False, student=student, teacher=teacher)
    assert loss(student, teacher, ALL).parts["hidden"] > 0
    assert [tuple(weight.shape) for weight in loss.parameters()] == [(8, 4)]


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (Losses(logits=0.0), "weight 0"),
        (Losses(task=1.0), "labels"),
        (Losses(hidden=1.0), "hidden states"),
        (Losses(), "not the same classes"),
    ],
)
def test_losses_that_do_not_fit(losses: Losses, reason: str) -> None:
    student, teacher = seen(torch.zeros(2, 3)), seen(torch.zeros(2, 4 if losses == Losses() else 3))
    with pytest.raises(StageError, match=reason):
        ImitationLoss(losses, embedding=False, student=student, teacher=teacher)


def test_a_projection_can_learn_what_was_thrown_away(random: Callable[..., Tensor]) -> None:
    """An embedding that holds the teacher's in fewer numbers is not punished for its width for long."""
    basis = torch.linalg.qr(random(8, 3))[0]
    student, teacher = seen(random(64, 3)), seen(torch.zeros(64, 8))
    teacher = seen(student.answers.rows @ basis.T)
    loss = ImitationLoss(Losses(logits=0.0), embedding=True, student=student, teacher=teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        total = loss(student, teacher, ALL).total
        total.backward()
        optimizer.step()
    assert isinstance(loss, nn.Module)
    assert total.item() < 0.01
