"""Observers: ranges out of calibration data, the same however the data is dealt out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace_workers.compression.quantization.observers import (
    BINS,
    ChannelMaxObserver,
    HistogramObserver,
    MinMaxObserver,
    Observer,
    PercentileObserver,
    make_observer,
)

KINDS: list[Callable[[], Observer]] = [MinMaxObserver, lambda: PercentileObserver(99), HistogramObserver]


def seen_by(make: Callable[[], Observer], *parts: Tensor) -> Observer:
    observer = make()
    for part in parts:
        observer.observe(part)
    return observer


def error(low: float, high: float, values: Tensor) -> float:
    """Mean squared error of 256 levels over a range."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    codes = ((values / scale).round() + zero).clamp(0, 255)
    return float(((codes - zero) * scale - values).square().mean())


def test_three_ways_to_see_an_outlier() -> None:
    values = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(1)), torch.tensor([60.0])])

    whole, most, best = (seen_by(make, values).range() for make in KINDS)

    assert whole.high == 60
    assert 2.2 < most.high < 2.5, "a standard normal's 99th percentile is 2.33"
    assert 4 < best.high < 60
    assert error(*best, values) < min(error(*whole, values), error(*most, values))


@pytest.mark.parametrize("make", KINDS)
def test_what_workers_saw_apart_is_what_one_would_have_seen(make: Callable[[], Observer]) -> None:
    parts = [torch.randn(500, generator=torch.Generator().manual_seed(at)) * 10.0**at for at in range(-3, 3)]
    one = seen_by(make, *parts)

    apart = [seen_by(make, part) for part in reversed(parts)]
    merged = apart[0]
    for other in apart[1:]:
        merged = merged.merge(other)

    assert merged.range() == one.range()


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1e-40, 1e30]), max_size=8),
        min_size=3,
        max_size=3,
    )
)
@pytest.mark.parametrize("make", KINDS[1:])
def test_merging_is_associative_to_the_bit(make: Callable[[], Observer], parts: list[list[float]]) -> None:
    a, b, c = (seen_by(make, torch.tensor(part)) for part in parts)

    left, right, other = a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(b).merge(a)

    for found in (right, other, seen_by(make, *(torch.tensor(part) for part in parts))):
        assert vars(found).keys() == vars(left).keys()
        for name, value in vars(left).items():
            assert (
                torch.equal(getattr(found, name), value) if isinstance(value, Tensor) else getattr(found, name) == value
            )
    assert len(left.counts) <= BINS  # type: ignore[attr-defined]
    assert int(left.counts.sum()) == sum(map(len, parts))  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", KINDS)
def test_zero_is_always_within(make: Callable[[], Observer]) -> None:
    assert seen_by(make, torch.full((9,), 3.0)).range().low == 0
    assert seen_by(make, torch.full((9,), -3.0)).range().high == 0
    assert seen_by(make, torch.zeros(9)).range() == (0, 0)


@pytest.mark.parametrize("make", KINDS)
def test_no_range_without_values(make: Callable[[], Observer]) -> None:
    with pytest.raises(ValueError, match="nothing was observed"):
        seen_by(make, torch.zeros(0)).range()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", KINDS)
def test_what_is_not_finite_is_refused(make: Callable[[], Observer], value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        make().observe(torch.tensor([1.0, value]))


def test_a_histogram_is_as_good_as_trying_every_range() -> None:
    values = torch.randn(5_000, generator=torch.Generator().manual_seed(5)).exp() - 1
    found = seen_by(HistogramObserver, values).range()

    tried = min(error(float(values.min()), float(high), values) for high in torch.linspace(1, float(values.max()), 100))

    assert error(*found, values) < 1.1 * tried


def test_channels_are_observed_one_by_one() -> None:
    one, other = ChannelMaxObserver(), ChannelMaxObserver()
    one.observe(torch.tensor([[1.0, -5.0], [2.0, 0.0]]))
    other.observe(torch.tensor([[-3.0, 1.0]]))

    assert one.merge(other).largest.tolist() == [3.0, 5.0]
    assert ChannelMaxObserver().merge(one).largest.tolist() == [2.0, 5.0]


def test_observers_have_the_names_of_recipes() -> None:
    assert isinstance(make_observer("minmax"), MinMaxObserver)
    assert make_observer("percentile", percentile=95).percentile == 95  # type: ignore[attr-defined]
    assert isinstance(make_observer("histogram"), HistogramObserver)
