"""Students made of their teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.pruning.layout import layout_of
from headrace_workers.compression.pruning.narrow import evenly_spaced, narrowed, student_of
from headrace_workers.compression.pruning.structured import cut_blocks, cut_units
from headrace_workers.compression.recipe import Student
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import ModuleSubject, Subject, TextSubject

TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

WIDE: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Bert", "Model", WIDE),
    ("Roberta", "ForSequenceClassification", {**WIDE, "num_labels": 3}),
    ("DistilBert", "Model", {**WIDE, "dim": 64, "n_heads": 4, "hidden_dim": 128}),
    ("Llama", "ForCausalLM", {**WIDE, "num_key_value_heads": 2}),
    ("Qwen2", "ForCausalLM", {**WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
]
any_make = pytest.mark.parametrize(("make", "head", "settings"), CASES, ids=[make for make, _, _ in CASES])


@torch.no_grad()
def answers(subject: Subject, texts: list[str]) -> Tensor:
    return subject.answers(next(subject.batches(Examples(texts), len(texts)))).rows


def parameter(subject: Subject, name: str) -> Tensor:
    return subject.module.get_parameter(name).detach()


def text_student(subject: TextSubject, context: StageContext, **student: Any) -> TextSubject:
    found = student_of(subject, Student(**student), context)
    assert isinstance(found, TextSubject)
    return found


# -- as a tutorial ------------------------------------------------------------------------------------------


@any_make
def test_half_of_everything(
    make: str,
    head: str,
    settings: dict[str, Any],
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
) -> None:
    """A student is a model of its own: transformers makes it by its configuration, without anything being told."""
    teacher = tiny_subject(make, head, **settings)
    before = answers(teacher, tiny_texts)

    student = text_student(teacher, context_of(teacher), layers=2, hidden=32, ffn=48)

    by_the_book = type(student.module)(student.config)
    shapes = {name: tensor.shape for name, tensor in student.module.state_dict().items()}
    assert shapes.items() <= {name: tensor.shape for name, tensor in by_the_book.state_dict().items()}.items()
    assert answers(student, tiny_texts).isfinite().all()
    layout = layout_of(student.module)
    assert [ffn.width for ffn in layout.ffns] == [48, 48]
    assert (layout.attentions[0].heads, layout.attentions[0].head_size) == (2, 16), "heads keep their size"
    assert torch.equal(answers(teacher, tiny_texts), before), "the teacher stays as it is"


def test_fewer_layers_are_the_teachers_own(
    tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]
) -> None:
    teacher = tiny_subject("Bert", **WIDE)
    student = text_student(teacher, context_of(teacher), layers=3)

    cut_blocks(teacher, "encoder.layer", [0, 2, 3])

    assert torch.equal(answers(student, tiny_texts), answers(teacher, tiny_texts))
    assert student.structure.layers == {}, "its configuration says it all"


@any_make
def test_fewer_neurons_and_heads_are_the_most_important(
    make: str,
    head: str,
    settings: dict[str, Any],
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
) -> None:
    """Where a quarter of the neurons does nothing, a student without a quarter answers like its teacher."""
    teacher = tiny_subject(make, head, **settings)
    for ffn in layout_of(teacher.module).ffns:
        for name in ffn.inputs:
            linear: Any = teacher.module.get_submodule(name)
            linear.weight[3::4] = 0
            if linear.bias is not None:
                linear.bias[3::4] = 0

    student = text_student(teacher, context_of(teacher), ffn=96)

    torch.testing.assert_close(answers(student, tiny_texts), answers(teacher, tiny_texts), rtol=1e-4, atol=1e-4)


def test_channels_that_are_always_quiet_go_first(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Those that every norm holds at zero."""
    teacher = tiny_subject("Bert")
    loud = torch.tensor([channel for channel in range(64) if channel % 2])
    for part in teacher.module.modules():
        if isinstance(part, nn.LayerNorm):
            part.weight[::2] = 0
            part.bias[::2] = 0

    student = text_student(teacher, context_of(teacher), hidden=32)

    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.intermediate.dense.weight"):
        assert torch.equal(parameter(student, name), parameter(teacher, name)[:, loud])


def test_a_new_student_is_drawn_by_the_seed(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    teacher, context = tiny_subject("Bert"), context_of(tiny_subject("Bert"))

    def drawn(seed: int) -> Tensor:
        context.seed = seed
        student = text_student(teacher, context, layers=1, initial="random")
        return parameter(student, "encoder.layer.0.output.dense.weight")

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_the_same_shape_is_a_copy(tiny_subject: TinySubject, context_of: ContextOf, tiny_texts: list[str]) -> None:
    teacher = tiny_subject("Bert")
    student = student_of(teacher, Student(), context_of(teacher))
    assert student.module is not teacher.module
    assert torch.equal(answers(student, tiny_texts), answers(teacher, tiny_texts))


# -- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "heads", "size"),
    [({"hidden": 48}, 3, 16), ({"hidden": 40}, 4, 10), ({"hidden": 32, "heads": 4}, 4, 8), ({"hidden": 8}, 1, 8)],
)
def test_heads_keep_their_size_where_they_can(
    asked: dict[str, int],
    heads: int,
    size: int,
    tiny_subject: TinySubject,
    context_of: ContextOf,
    tiny_texts: list[str],
) -> None:
    teacher = tiny_subject("Bert", **WIDE)
    student = text_student(teacher, context_of(teacher), **asked)
    attention = layout_of(student.module).attentions[0]
    assert (attention.heads, attention.head_size) == (heads, size)
    assert answers(student, tiny_texts).isfinite().all()


def test_a_smaller_head_keeps_queries_and_keys_that_belong_together(
    tiny_subject: TinySubject, context_of: ContextOf
) -> None:
    """Channels of values go with columns of what reads them; those of queries with those of keys."""
    teacher = tiny_subject("Bert", **WIDE)
    attention, places = "encoder.layer.0.attention", torch.arange(64.0)
    for name in ("query", "key", "value"):
        parameter(teacher, f"{attention}.self.{name}.bias").copy_(places)
    parameter(teacher, f"{attention}.output.dense.weight").copy_(places.expand(64, -1))
    parameter(teacher, f"{attention}.self.query.weight")[::2] *= 100
    parameter(teacher, f"{attention}.self.key.weight")[::2] *= 0.001

    student = text_student(teacher, context_of(teacher), hidden=32, heads=4)

    query, key, value = (parameter(student, f"{attention}.self.{name}.bias") for name in ("query", "key", "value"))
    assert torch.equal(query, key)
    assert (query % 2 == 1).all(), "a loud query is worth nothing where its key is silent"
    assert torch.equal(value, parameter(student, f"{attention}.output.dense.weight")[0])
    assert (query // 16).tolist() == [float(head) for head in range(4) for _ in range(8)], "eight of each head"


def test_rotated_heads_keep_their_size(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    """Their group stays together: two heads to a key, as many keys as fit."""
    teacher = tiny_subject("Qwen2", "ForCausalLM", **WIDE, num_key_value_heads=2)
    student = text_student(teacher, context_of(teacher), heads=2)
    attention = layout_of(student.module).attentions[0]
    assert (attention.heads, attention.kv_heads, attention.head_size) == (2, 1, 16)
    assert student.config.head_dim == 16


# -- modules of one's own -----------------------------------------------------------------------------------------


def test_a_student_of_a_plain_module_has_fewer_neurons() -> None:
    torch.manual_seed(0)
    teacher = ModuleSubject(
        nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 10))
    )
    data = Examples(list(torch.rand(40, 64)))
    context = StageContext(teacher, Split(data, data, data))

    student = student_of(teacher, Student(ffn=32), context)
    new = student_of(teacher, Student(ffn=32, initial="random"), context)

    shapes = [tuple(tensor.shape) for tensor in student.module.state_dict().values()]
    assert shapes == [(32, 64), (32,), (24, 32), (24,), (10, 24), (10,)]
    assert all(row.tolist() in parameter(teacher, "0.weight").tolist() for row in parameter(student, "0.weight"))
    assert not torch.equal(parameter(new, "4.weight"), parameter(teacher, "4.weight"))
    for asked, message in ({"hidden": 32}, "only ffn and layers"), ({"layers": 1}, "no list of blocks"):
        with pytest.raises(StageError, match=message):
            student_of(teacher, Student(**asked), context)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "count", "places"), [(12, 3, [0, 6, 11]), (6, 2, [0, 5]), (4, 4, [0, 1, 2, 3]), (5, 1, [0])]
)
def test_layers_are_evenly_spaced(of: int, count: int, places: list[int]) -> None:
    assert evenly_spaced(of, count) == places


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layers": 3}, "3 layers cannot be made of a teacher with 2"),
        ({"hidden": 80}, "hidden 80 cannot be cut out of a teacher with 64; ask for at most 64"),
        ({"ffn": 256}, "ffn 256 cannot be cut out of a teacher with 128"),
        ({"heads": 4}, "heads 4 cannot be cut out of a teacher with 2"),
        ({"heads": 1}, "hidden 64 in 1 heads is not at most 32 channels each"),
        ({"hidden": 33}, "hidden 33 cannot be shared among 2 heads"),
        ({"model": "elsewhere"}, r"another model \(elsewhere\) is loaded"),
    ],
)
def test_a_student_larger_than_its_teacher_is_refused(
    asked: dict[str, Any], message: str, tiny_subject: TinySubject, context_of: ContextOf
) -> None:
    teacher = tiny_subject("Bert")
    with pytest.raises(StageError, match=message):
        student_of(teacher, Student(**asked), context_of(teacher))


def test_what_an_architecture_cannot_lose_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    mpnet, llama = tiny_subject("MPNet"), tiny_subject("Llama", "ForCausalLM", **WIDE, num_key_value_heads=2)
    electra = tiny_subject("Electra", embedding_size=32)
    for teacher, asked, message in (
        (mpnet, {"hidden": 32}, "position bias"),
        (llama, {"heads": 3}, "2 heads share a key and value head; 3 heads cannot"),
        (electra, {"hidden": 32}, "embeddings_project.* is not in both teacher and student"),
    ):
        with pytest.raises(StageError, match=message):
            student_of(teacher, Student(**asked), context_of(teacher))


def test_a_teacher_of_unlike_blocks_is_refused(tiny_subject: TinySubject, context_of: ContextOf) -> None:
    teacher = tiny_subject("Bert")
    cut_units(teacher, {layout_of(teacher.module).ffns[0]: torch.arange(64)})
    with pytest.raises(StageError, match="pruned already"):
        narrowed(teacher, context_of(teacher), hidden=32)
