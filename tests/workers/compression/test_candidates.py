"""Candidates: what is proposed for a target, and what the latency table says it would gain."""

from __future__ import annotations

import pytest

from headrace_workers.compression.recipe import Distill, PruneStructured, Quantize
from headrace_workers.compression.search.candidates import propose, shapes_needed
from headrace_workers.compression.search.profile import LinearShape, Profile
from headrace_workers.compression.search.target import parse_target
from support.arithmetic_study import EASY, EVERY_LAYER, PROFILE, TABLE, ideal


def test_plain_int8_comes_first() -> None:
    """It needs no training, so that there is an answer at once."""
    first, *others = propose(PROFILE, TABLE, EASY, ranking=EVERY_LAYER)
    assert first.recipe.stages == [Quantize()]
    assert not first.trains
    assert first.speedup == pytest.approx(4.0, rel=0.01)
    assert len({candidate.key for candidate in [first, *others]}) == len(others) + 1 <= 12


def test_prices_follow_from_widths() -> None:
    """Half of the neurons: half of the time and the bytes of that part."""
    found = {one.name: one for one in propose(PROFILE, TABLE, EASY, most=99)}
    int8, halved = found["int8"], found["ffn −50%, int8"]
    ffn = {(64, 128), (128, 64)}
    assert sum(use.layers for use in halved.uses if use[:2] in ffn) == 8
    assert halved.speedup == pytest.approx(4 * (4 * 64 * 64 + 2 * 64 * 256) / (4 * 64 * 64 + 2 * 64 * 128), rel=0.02)
    assert halved.size_ratio < int8.size_ratio


def test_sensitive_layers_are_left_alone() -> None:
    found = {one.name: one for one in propose(PROFILE, TABLE, parse_target("drop<=1%"), ranking=EVERY_LAYER, most=99)}
    stage = found["int8, 2 exact"].recipe.stages[0]
    assert isinstance(stage, Quantize)
    assert stage.overrides == {"layer.0.query": None, "layer.0.key": None}
    assert found["int8, 2 exact"].speedup < found["int8"].speedup


def test_what_cannot_be_fast_enough_is_not_tried() -> None:
    found = propose(PROFILE, TABLE, parse_target("speed>=30x"))
    assert all(one.speedup >= 15 for one in found[1:])
    assert any(isinstance(one.recipe.stages[0], Distill) for one in found)


def test_just_enough_is_cut_for_a_speed() -> None:
    """The table says how many neurons must go: no more do."""
    found = propose(PROFILE, TABLE, parse_target("speed>=5x"), most=99)
    cuts = [
        (one.speedup, stage.ratio)
        for one in found
        if isinstance(stage := one.recipe.stages[0], PruneStructured) and stage.target == "ffn"
    ]
    fewest = min(ratio for speed, ratio in cuts if speed >= 5 and ratio is not None)
    assert fewest not in (0.25, 0.5, 0.75)
    assert fewest % (1 / 8) == 0


def test_without_data_nothing_is_trained() -> None:
    assert not any(one.trains for one in propose(PROFILE, TABLE, EASY, trainable=False))


def test_a_model_without_blocks_is_only_quantized_and_cut_where_it_can_be() -> None:
    plain = Profile(linears=(LinearShape("a", 64, 256), LinearShape("b", 256, 10)))
    found = propose(plain, ideal(shapes_needed(plain)), parse_target("size<=30%"))
    assert {one.name for one in found} == {"int8", "int4"}
