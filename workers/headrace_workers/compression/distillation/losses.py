"""Losses: how far a student's answers are from its teacher's.

All of them are means over what is there: rows of answers, valid positions, heads. So a loss does not depend on how much
of a batch is padding, and weights of a recipe mean the same for any batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from headrace.errors import StageError
from headrace_workers.compression.recipe import Losses
from headrace_workers.compression.subject import Answers

__all__ = [
    "ImitationLoss",
    "Seen",
    "Terms",
    "cosine_distance",
    "hidden_mse",
    "relation_kl",
    "similarity_kl",
    "softened_kl",
]

_MOST_ELEMENTS: Final = 1 << 22
"""Logits whose softmax is taken at once: with a vocabulary of 50,000 a batch's would fill gigabytes."""
_SIMILARITY_SCALE: Final = 20.0
"""What cosines are multiplied with to be logits; sentence-transformers' choice. Their own softmax is all but flat."""
_MOST_RELATION_HEADS: Final = 12
_NEVER: Final = -1e9
"""A logit that takes no share of a softmax, and is finite: the difference of two is still a number."""


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of answers softened by T, the mean over rows (Hinton et al., arXiv 1503.02531).

    The factor T² keeps gradients as large as they are at T = 1, next to those of other losses.

    Args:
        student: logits [rows, classes].
        teacher: logits [rows, classes], without gradients.
    """
    size = max(1, _MOST_ELEMENTS // student.shape[1])
    parts = [
        _kl_sum(part, other, temperature)
        if len(student) <= size
        else checkpoint(_kl_sum, part, other, temperature, use_reentrant=False, preserve_rng_state=False)
        for part, other in zip(torch.split(student, size), torch.split(teacher, size), strict=True)
    ]
    return torch.stack(parts).sum() * (temperature**2 / len(student))


def _kl_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = functional.log_softmax(student / temperature, -1), functional.log_softmax(teacher / temperature, -1)
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True)


def similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL between whom each text of a batch is like, to the teacher and to the student.

    The two need not be of one width. A text is not compared with itself.

    Args:
        student: embeddings [texts, width].
        teacher: embeddings [texts, width of the teacher's].
    """
    if len(student) < 2:
        return student.sum() * 0.0
    return softened_kl(_similarities(student), _similarities(teacher), temperature)


def _similarities(embeddings: Tensor) -> Tensor:
    unit = functional.normalize(embeddings, dim=-1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (_SIMILARITY_SCALE * unit @ unit.T)[others].view(len(unit), -1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cosine of [texts, width] to [texts, width], the mean over texts."""
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def hidden_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Mean squared error between hidden states at valid positions, the mean over the student's layers.

    Layer i of a student of s layers is compared with layer round(i·t/s) of the teacher's t; embeddings with embeddings.

    Args:
        student: [examples, positions, width] for embeddings and each layer, of the teacher's width.
        teacher: likewise, of as many layers or more or fewer.
        valid: bool [examples, positions].
    """
    depth, ratio = len(student) - 1, (len(teacher) - 1) / max(1, len(student) - 1)
    pairs = [(student[layer], teacher[round(layer * ratio)]) for layer in range(depth + 1)]
    return torch.stack([functional.mse_loss(ours[valid], theirs[valid]) for ours, theirs in pairs]).mean()


def relation_kl(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """KL between self-attention relations: which positions' queries (or keys, or values) are alike.

    MiniLMv2's (arXiv 2012.15828): both are cut into the same number of heads, the largest that divides both widths and
    is at most 12, so that widths and numbers of attention heads may differ.

    Args:
        student: queries, keys or values [examples, positions, width].
        teacher: the same of the teacher, of any width.
        valid: bool [examples, positions].

    Returns:
        The mean over heads and valid positions.
    """
    common = math.gcd(student.shape[-1], teacher.shape[-1])
    heads = max(count for count in range(1, _MOST_RELATION_HEADS + 1) if common % count == 0)
    ours, theirs = _relations(student, heads, valid), _relations(teacher, heads, valid)
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return divergence.mean(1)[valid].mean()


def _relations(vectors: Tensor, heads: int, valid: Tensor) -> Tensor:
    examples, positions, width = vectors.shape
    split = vectors.view(examples, positions, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    return functional.log_softmax(scores.masked_fill(~valid[:, None, None, :], _NEVER), -1)


@dataclass(frozen=True)
class Seen:
    """What losses look at: what a model said of a batch, and what went on within it."""

    answers: Answers
    relations: tuple[Tensor, ...] = ()
    """Queries, keys and values of the last block, [examples, positions, width] each; empty unless asked for."""


@dataclass(frozen=True)
class Terms:
    """A loss, and what it is the sum of."""

    total: Tensor
    """Scalar, with gradients."""
    parts: dict[str, float]
    """Each term by its name in `Losses`, without its weight."""


class ImitationLoss(nn.Module):
    """The weighted sum of a recipe's losses, with the projections they need where widths differ.

    A projection is a linear layer from the student's width to the teacher's. It is trained with the student and thrown
    away: an embedding of another width is asked to hold what the teacher's holds, up to a linear map, and
    `similarity_kl` asks that it holds so in its own cosines.

    Args:
        losses: which terms count, and how much.
        embedding: whether answers are embeddings.
        student: what a batch looks like to the student; widths are taken from it.
        teacher: likewise.

    Raises:
        StageError: no term is left, or one needs what the models do not show.
    """

    def __init__(self, losses: Losses, *, embedding: bool, student: Seen, teacher: Seen) -> None:
        super().__init__()
        self._losses, self._embedding = losses, embedding
        widths = student.answers.rows.shape[1], teacher.answers.rows.shape[1]
        _check(losses, embedding, student, teacher)
        self._answers = _projection(*widths) if embedding and losses.embedding else None
        self._states: nn.Module | None = None
        if losses.hidden:
            self._states = _projection(student.answers.hidden[0].shape[-1], teacher.answers.hidden[0].shape[-1])

    def forward(self, student: Seen, teacher: Seen, valid: Tensor) -> Terms:
        """The loss of a batch, in float32; `valid` is bool [examples, positions]."""
        terms = self._terms(_float(student), _float(teacher), valid)
        total = torch.stack([getattr(self._losses, name) * term for name, term in terms.items()]).sum()
        return Terms(total, {name: term.item() for name, term in terms.items()})

    def _terms(self, student: Seen, teacher: Seen, valid: Tensor) -> dict[str, Tensor]:
        losses, terms = self._losses, {}
        ours, theirs = student.answers, teacher.answers
        if losses.logits:
            distance = similarity_kl if self._embedding else softened_kl
            terms["logits"] = distance(ours.rows, theirs.rows, losses.temperature)
        if self._answers is not None:
            terms["embedding"] = cosine_distance(self._answers(ours.rows), theirs.rows)
        if losses.task:
            assert ours.targets is not None
            terms["task"] = functional.cross_entropy(ours.rows, ours.targets)
        if self._states is not None:
            terms["hidden"] = hidden_mse([self._states(state) for state in ours.hidden], theirs.hidden, valid)
        if losses.relations:
            pairs = zip(student.relations, teacher.relations, strict=True)
            terms["relations"] = torch.stack([relation_kl(own, other, valid) for own, other in pairs]).mean()
        return terms


def _float(seen: Seen) -> Seen:
    answers = seen.answers
    hidden = tuple(state.float() for state in answers.hidden)
    return Seen(Answers(answers.rows.float(), hidden, answers.targets), tuple(one.float() for one in seen.relations))


def _projection(width: int, wanted: int) -> nn.Module:
    if width == wanted:
        return nn.Identity()
    projection = nn.Linear(width, wanted, bias=False)
    nn.init.orthogonal_(projection.weight)
    return projection


def _check(losses: Losses, embedding: bool, student: Seen, teacher: Seen) -> None:
    counting = losses.logits, losses.task, losses.hidden, losses.relations, losses.embedding if embedding else 0.0
    if not any(counting):
        raise StageError(
            "every loss has weight 0, or does not count for this task: give one a weight, such as logits: 1"
        )
    ours, theirs = student.answers.rows.shape[1], teacher.answers.rows.shape[1]
    if losses.logits and not embedding and ours != theirs:
        raise StageError(f"the student answers with {ours} numbers, the teacher with {theirs}: not the same classes")
    if losses.task and student.answers.targets is None:
        raise StageError("the loss 'task' needs data with labels, and a task that has some")
    if losses.hidden and not (student.answers.hidden and teacher.answers.hidden):
        raise StageError("the loss 'hidden' needs models that show their hidden states; plain modules do not")
