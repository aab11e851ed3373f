"""The training loop, on the smallest things that can be trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.distillation.training import batch_order, rate_share, text_lengths, train
from headrace_workers.compression.recipe import Training

QUICK = Training(steps=40, batch_size=8, learning_rate=0.05)


class Line:
    """Learn y = 2·x₀ − 3·x₁ + 1 from 64 points, with dropout where asked for."""

    def __init__(self, dropout: float = 0.0, start: float = 0.0) -> None:
        self.line = nn.Linear(2, 1)
        nn.init.constant_(self.line.weight, start)
        nn.init.zeros_(self.line.bias)
        self.module = nn.Sequential(nn.Dropout(dropout), self.line)
        self.beside: nn.Module = nn.Identity()
        self.x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.tensor([[2.0], [-3.0]]) + 1
        self.lengths = [0] * 64

    @property
    def weight(self) -> Tensor:
        return self.line.weight

    def backward(self, places: Sequence[int]) -> float:
        assert self.module.training
        loss = functional.mse_loss(self.module(self.x[list(places)]), self.y[list(places)])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def validation_loss(self) -> float:
        assert not self.module.training
        return functional.mse_loss(self.module(self.x), self.y).item()


def test_a_line_is_learned() -> None:
    line, told = Line(), list[float]()
    report = train(line, Training(steps=200, batch_size=8, learning_rate=0.1), seed=0, progress=told.append)
    assert line.weight.tolist() == [[pytest.approx(2.0, abs=0.05), pytest.approx(-3.0, abs=0.05)]]
    assert report.best_loss == pytest.approx(line.validation_loss())
    assert report.best_loss < 0.01 < report.first_loss
    assert told == [step / 200 for step in range(1, 201)]


def test_the_same_seed_gives_the_same_weights() -> None:
    def trained(seed: int) -> Tensor:
        line = Line(dropout=0.2)
        train(line, QUICK, seed=seed)
        return line.weight

    torch.testing.assert_close(trained(5), trained(5), rtol=0, atol=0)
    assert not torch.equal(trained(5), trained(6))


def test_random_numbers_of_the_process_are_left_alone() -> None:
    line = Line(dropout=0.2)
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    train(line, QUICK, seed=0)
    assert torch.equal(torch.rand(3), wanted)


def test_afterwards_the_module_is_at_rest() -> None:
    line = Line()
    train(line, QUICK, seed=0)
    assert not line.module.training
    assert [parameter.requires_grad for parameter in line.module.parameters()] == [False, False]
    assert all(parameter.grad is None for parameter in line.module.parameters())


def test_the_best_weights_are_kept_not_the_last() -> None:
    """A rate that is too high throws good weights away; they come back."""
    line = Line()
    train(line, Training(steps=200, batch_size=8, learning_rate=0.1), seed=0)
    good = line.weight.clone()
    report = train(line, Training(steps=20, batch_size=8, learning_rate=1.0, warmup=0.0), seed=0)
    assert report.best_step == 0
    assert torch.equal(line.weight, good)


def test_a_loss_that_is_not_a_number_is_named_with_its_step() -> None:
    line = Line()
    line.y[:] = float("nan")
    with pytest.raises(StageError, match=r"step 1 of 40: the loss is nan"):
        train(line, QUICK, seed=0)
    assert not line.module.training


def test_an_infinite_gradient_is_no_step() -> None:
    class Steep(Line):
        def backward(self, places: Sequence[int]) -> float:
            super().backward(places)
            assert self.weight.grad is not None
            self.weight.grad.fill_(float("inf"))
            return 1.0

    steep = Steep(start=0.25)
    with pytest.raises(StageError, match="norm inf"):
        train(steep, QUICK, seed=0)
    assert steep.weight.tolist() == [[0.25, 0.25]]


def test_gradients_are_clipped() -> None:
    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    line = Line()
    line.y *= 1000
    hook = register_optimizer_step_pre_hook(look)
    try:
        train(line, Training(steps=3, batch_size=64, clip_norm=0.5), seed=0)
    finally:
        hook.remove()
    assert norms == [pytest.approx(0.5, rel=1e-4)] * 3


def test_what_stands_beside_is_trained_too() -> None:
    class Projected(Line):
        def backward(self, places: Sequence[int]) -> float:
            loss: Tensor = functional.mse_loss(self.beside(self.module(self.x[list(places)])), self.y[list(places)])
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

    task = Projected()
    task.beside = nn.Linear(1, 1, bias=False)
    before = task.beside.weight.clone()
    train(task, QUICK, seed=0)
    assert not torch.equal(task.beside.weight, before)


def test_something_can_be_held_while_it_trains() -> None:
    entered: list[bool] = []

    @contextmanager
    def held() -> Iterator[None]:
        entered.append(line.weight.requires_grad)
        yield
        entered.append(line.weight.requires_grad)

    line = Line()
    train(line, QUICK, seed=0, held=held())
    assert entered == [True, True]


def test_nothing_to_train_with() -> None:
    line = Line()
    line.lengths = []
    with pytest.raises(CompressionDataError, match="nothing to train with"):
        train(line, QUICK, seed=0)


def test_the_rate_goes_up_and_down() -> None:
    shares = [rate_share(step, Training(steps=10, warmup=0.2)) for step in range(10)]
    assert shares == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert [rate_share(step, Training(steps=1, warmup=0.9)) for step in range(1)] == [1.0]
    assert rate_share(0, Training(steps=4, warmup=0.0)) == 1.0


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 40), st.integers(0, 1 << 30))
def test_every_example_once_before_any_again(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = -(-len(lengths) // batch_size)
    rounds = batches + len(lengths)  # pools may end in short batches of their own
    seen: list[int] = []
    for batch in islice(batch_order(lengths, batch_size, seed), rounds):
        assert 0 < len(batch) <= batch_size
        seen += batch
        if len(seen) >= len(lengths):
            break
    assert sorted(seen) == list(range(len(lengths)))


def test_alike_lengths_go_together_and_rounds_differ() -> None:
    lengths = [at % 100 for at in range(640)]
    order = batch_order(lengths, 8, seed=0)
    first, second = list(islice(order, 80)), list(islice(order, 80))
    spans = [max(lengths[at] for at in batch) - min(lengths[at] for at in batch) for batch in first]
    assert sum(spans) / len(spans) < 20  # of 100; by chance it would be about 78
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert list(islice(batch_order(lengths, 8, seed=0), 80)) == first


def test_tensors_have_no_length() -> None:
    assert text_lengths(Examples(["ab", "abcd"])) == [2, 4]
    assert text_lengths(Examples([torch.zeros(3), torch.zeros(3)])) == [0, 0]
