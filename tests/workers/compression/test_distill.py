"""Students: smaller models that answer like their teacher."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.distillation.distill import distill
from headrace_workers.compression.distillation.finetune import classifier_of, save_classifier, train_classifier
from headrace_workers.compression.distillation.imitation import Imitation
from headrace_workers.compression.recipe import Distill, Losses, Student, Training
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import ModuleSubject, Subject, load_subject
from headrace_workers.models.source import find_source

TEXT = "the mill wheel turns when water runs down a headrace and rests it does not"
WORDS = TEXT.split()
SHORT = Training(steps=60, batch_size=16, learning_rate=5e-3)
ONE_LAYER = Student(layers=1)
TinyModel = Callable[..., Path]


def texts(count: int = 160) -> list[str]:
    draw = random.Random(2)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> Split:
    return split(Examples(texts()))


@pytest.fixture(scope="module")
def watery() -> Split:
    """Texts by whether the water is in them."""
    found = texts(240)
    return split(Examples(found, [int("water" in text) for text in found], ("dry", "wet")))


@pytest.fixture(scope="module")
def embedder(tiny_model: TinyModel) -> Path:
    return tiny_model("Bert")


def context_of(original: Subject, data: Split, seed: int = 0) -> StageContext:
    return StageContext(original, data, seed)


def rows(subject: Subject, examples: Examples) -> Tensor:
    with torch.no_grad():
        return torch.cat([subject.answers(batch).rows for batch in subject.batches(examples, 16)])


def layers(subject: Subject) -> int:
    config: Any = subject.module.config
    return int(config.num_hidden_layers)


def likeness(student: Subject, teacher: Subject, data: Split) -> float:
    """Mean cosine on test data."""
    return functional.cosine_similarity(rows(student, data.test), rows(teacher, data.test)).mean().item()


def test_a_student_of_one_layer(embedder: Path, data: Split) -> None:
    """It is cut out of its teacher, and then learns what the layer that is gone did."""
    teacher = load_subject(find_source(embedder))
    context = context_of(teacher, data)
    untrained = distill(teacher, Distill(student=ONE_LAYER, training=Training(steps=1, learning_rate=1e-9)), context)
    student = distill(teacher, Distill(student=ONE_LAYER, training=SHORT), context)
    assert layers(student) == 1
    assert likeness(student, teacher, data) > 0.9
    assert likeness(student, teacher, data) > likeness(untrained, teacher, data) + 0.05
    assert "distill: logits" in context.notes[-1]


def test_the_teacher_is_not_touched(embedder: Path, data: Split) -> None:
    teacher = load_subject(find_source(embedder))
    before = copy.deepcopy(teacher.module.state_dict())
    teacher.module.train()  # whoever left it so: dropout has no place in a teacher
    student = distill(teacher, Distill(training=SHORT), context_of(teacher, data))
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    torch.testing.assert_close(dict(teacher.module.state_dict()), dict(before), rtol=0, atol=0)
    assert student.module is not teacher.module


def test_the_same_seed_the_same_student(embedder: Path, data: Split) -> None:
    """Whatever random numbers were drawn before."""

    def student(seed: int) -> Tensor:
        torch.rand(1)
        return rows(distill(teacher, stage, context_of(teacher, data, seed)), data.test)

    teacher = load_subject(find_source(embedder))
    stage = Distill(student=Student(layers=1, hidden=32), training=Training(steps=8, batch_size=8))
    first = student(1)
    assert torch.equal(first, student(1))
    assert not torch.equal(first, student(2))


def test_a_teacher_is_asked_once_of_each_example(
    embedder: Path, watery: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said is kept, with the example it was said of: a student that is its twin is never far from it."""
    monkeypatch.setattr("headrace_workers.compression.distillation.imitation._MOST_POSITIONS", 40)
    teacher, asked = classifier_of(find_source(embedder), ["dry", "wet"]), list[int]()
    teacher.module.register_forward_pre_hook(
        lambda _module, _args, inputs: asked.append(len(inputs["input_ids"])), with_kwargs=True
    )
    twin = teacher.clone()
    twin.module._forward_pre_hooks.clear()
    twin.module.requires_grad_(True)
    task = Imitation(twin, teacher, watery.train, watery.validation, Losses(temperature=1.0))
    asked.clear()
    losses = [task.backward(places) for places in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4], [2, 1])]
    assert sum(asked) == 7
    with torch.no_grad():
        losses += [task.validation_loss(), task.validation_loss()]
    assert sum(asked) == 7 + len(watery.validation)
    assert max(losses) < 1e-4


def test_every_loss_at_once_and_a_narrower_student(embedder: Path, data: Split) -> None:
    """Half as wide: its embeddings are the teacher's up to a linear map, and its neighbours the teacher's."""
    teacher = load_subject(find_source(embedder))
    stage = Distill(
        student=Student(layers=1, hidden=32, ffn=64),
        losses=Losses(hidden=0.1, relations=0.1),
        training=Training(steps=10, batch_size=8),
    )
    context = context_of(teacher, data)
    student = distill(teacher, stage, context)
    assert rows(student, data.test).shape[1] == 32
    assert all(term in context.notes[-1] for term in ("logits", "embedding", "hidden", "relations"))


def test_a_classifier_and_its_student(embedder: Path, watery: Split, tmp_path: Path) -> None:
    """An encoder becomes a classifier, is written like any model, and read again; its student decides like it."""
    made = train_classifier(find_source(embedder), watery, Training(steps=120, batch_size=16, learning_rate=3e-3))
    save_classifier(made, tmp_path / "teacher")
    teacher = load_subject(find_source(tmp_path / "teacher"))
    assert teacher.task == "sequence_classification"
    assert teacher.config.id2label == {0: "dry", 1: "wet"}
    torch.testing.assert_close(rows(teacher, watery.test), rows(made, watery.test))
    assert accuracy(teacher, watery.test) > 0.95

    stage = Distill(student=ONE_LAYER, losses=Losses(logits=1.0, task=0.5), training=SHORT)
    student = distill(teacher, stage, context_of(teacher, watery))
    assert accuracy(student, watery.test) > 0.9


def accuracy(subject: Subject, examples: Examples) -> float:
    assert examples.labels is not None
    return (rows(subject, examples).argmax(1) == torch.tensor(list(examples.labels))).float().mean().item()


def test_a_language_model(tiny_model: TinyModel, data: Split) -> None:
    """The next word's distribution at every position; the task's loss needs no labels there."""
    folder = tiny_model("Llama", "ForCausalLM", num_key_value_heads=1, vocab_size=40)
    teacher = load_subject(find_source(folder))
    stage = Distill(student=ONE_LAYER, losses=Losses(logits=1.0, task=0.1), training=SHORT)
    context = context_of(teacher, data)
    student = distill(teacher, stage, context)
    kl = [float(word) for word in context.notes[-1].split("logits ")[1].split(",")[0].split(" → ")]
    assert kl[1] < 0.5 * kl[0]
    assert layers(student) == 1


def test_large_batches_go_in_pieces(tiny_model: TinyModel, data: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients, but for rounding, and so nearly the same student."""
    teacher = load_subject(find_source(tiny_model("Llama", "ForCausalLM", vocab_size=40)))
    stage = Distill(student=ONE_LAYER, training=Training(steps=3, batch_size=16))
    whole = distill(teacher, stage, context_of(teacher, data))
    monkeypatch.setattr("headrace_workers.compression.distillation.imitation._MOST_POSITIONS", 40)
    pieces = distill(teacher, stage, context_of(teacher, data))
    torch.testing.assert_close(rows(pieces, data.test), rows(whole, data.test), rtol=0.05, atol=0.05)


class Points:
    """Points of a plane by their quadrant."""

    def __init__(self) -> None:
        inputs = torch.randn(200, 2, generator=torch.Generator().manual_seed(4))
        labels = (2 * (inputs[:, 0] > 0) + (inputs[:, 1] > 0)).tolist()
        self.data = split(Examples(list(inputs), labels, ("sw", "nw", "se", "ne")))


def test_a_model_that_reads_no_text() -> None:
    """The student is whatever module one likes."""
    points = Points().data
    torch.manual_seed(0)
    teacher = ModuleSubject(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 4)).requires_grad_(False))
    small = ModuleSubject(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4)))
    before = rows(small, points.test)
    stage = Distill(training=Training(steps=150, batch_size=32, learning_rate=0.02))
    student = distill(teacher, stage, context_of(teacher, points), student=small)
    told = [
        (subject_rows - rows(teacher, points.test)).norm().item()
        for subject_rows in (before, rows(student, points.test))
    ]
    assert told[1] < 0.5 * told[0]
    with pytest.raises(StageError, match="hidden states"):
        distill(teacher, Distill(losses=Losses(hidden=1.0)), context_of(teacher, points))
    with pytest.raises(StageError, match="'relations' needs attention"):
        distill(teacher, Distill(losses=Losses(relations=1.0)), context_of(teacher, points))


def test_another_model_as_student(tiny_model: TinyModel, embedder: Path, watery: Split) -> None:
    """Of another make, with no head yet: it gets one."""
    teacher = classifier_of(find_source(embedder), ["dry", "wet"])
    other = tiny_model("DistilBert", dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    stage = Distill(student=Student(model=str(other)), training=Training(steps=2))
    student = distill(teacher, stage, context_of(teacher, watery))
    assert rows(student, watery.test).shape[1] == 2
    assert type(student.module).__name__ == "DistilBertForSequenceClassification"


def test_a_student_that_reads_other_tokens(tiny_model: TinyModel, embedder: Path, data: Split) -> None:
    teacher = load_subject(find_source(embedder))
    larger = tiny_model("Bert", vocab_size=1300)
    with pytest.raises(StageError, match=r"1300 tokens, the teacher's 1200"):
        distill(teacher, Distill(student=Student(model=str(larger))), context_of(teacher, data))
    other = tiny_model("Bert")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"mill"', '"sail"'))
    with pytest.raises(StageError, match="other tokens"):
        distill(teacher, Distill(student=Student(model=str(other))), context_of(teacher, data))


def test_weights_that_are_no_numbers(embedder: Path, data: Split) -> None:
    teacher = load_subject(find_source(embedder))
    subject = teacher.clone()
    broken: Any = subject.module
    broken.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="step 1 of"):
        distill(subject, Distill(training=SHORT), context_of(teacher, data))


@pytest.mark.parametrize(
    ("examples", "reason"),
    [(Examples(texts()), "needs labels"), (Examples(texts(), [0] * 160, ("only",)), "two classes")],
)
def test_no_classifier_of_that(embedder: Path, examples: Examples, reason: str) -> None:
    with pytest.raises(CompressionDataError, match=reason):
        train_classifier(find_source(embedder), split(examples), SHORT)


def test_a_label_without_a_name(embedder: Path, watery: Split) -> None:
    with pytest.raises(CompressionDataError, match="reach to 1, but there are 1 names"):
        train_classifier(find_source(embedder), watery, SHORT, label_names=["dry"])


def test_a_folder_is_whole_or_not_there(embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = classifier_of(find_source(embedder), ["dry", "wet"])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headrace_workers.compression.distillation.finetune.shutil.copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        save_classifier(made, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    save_classifier(made, tmp_path / "made")
    with pytest.raises(FileExistsError):
        save_classifier(made, tmp_path / "made")
