"""A check that has never been seen red proves nothing: each mistake is planted, and must be found by its name."""

from __future__ import annotations

import copy
import re

import pytest

from deploy.checks import findings
from deploy.kustomization import Object, overlay
from deploy.mistakes import MISTAKES, Mistake


@pytest.fixture(scope="module")
def right() -> list[Object]:
    """The overlay that has everything, as it should be."""
    return overlay("gpu-spot")


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_it_is_found(right: list[Object], mistake: Mistake) -> None:
    """In words that say what is wrong."""
    objects = copy.deepcopy(right)
    mistake.plant(objects)
    found = findings(objects)
    assert [words for words in found if re.search(mistake.found_by, words)], found


def test_each_has_a_name_of_its_own() -> None:
    """And they are more than thirty."""
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) > 30
