"""Pages by example: who holds which, what is found again, and what is forgotten first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_workers.generation.pages import PagePool

HELLO = [7, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 9]
"""Three full pages in the pools of these tests."""


def pool_of(pages: int, *, prefix_cache: bool = True) -> PagePool:
    return PagePool(pages, page_tokens=4, prefix_cache=prefix_cache)


def computed(pool: PagePool, tokens: Sequence[int]) -> list[int]:
    """The pages of a sequence that computed its tokens; those that are full can be found."""
    pages = pool.allocate(pool.pages_for(len(tokens)))
    digests = pool.digests(tokens)
    return [pool.publish(*known) for known in zip(digests, pages, strict=False)] + pages[len(digests) :]


# -- having and giving back ---------------------------------------------------------------------------------------


def test_pages_are_held_until_they_are_released() -> None:
    pool = pool_of(5)

    pages = pool.allocate(3)
    assert (len(set(pages)), pool.held, pool.available) == (3, 3, 2)

    pool.release(pages)
    assert (pool.held, pool.available) == (0, 5)


def test_all_or_nothing() -> None:
    """Who asks for more than there is gets an error and no page."""
    pool = pool_of(5)
    pool.allocate(3)

    with pytest.raises(MemoryError, match="3 pages were asked for and 2 of 5 are available"):
        pool.allocate(3)
    assert pool.available == 2


@pytest.mark.parametrize(("pages", "page_tokens"), [(0, 4), (4, 0)])
def test_there_must_be_something_to_give(pages: int, page_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        PagePool(pages, page_tokens=page_tokens)


# -- what is found again ------------------------------------------------------------------------------------------


def test_the_same_beginning_is_found() -> None:
    """Both hold the pages then; neither needs to compute them again."""
    pool = pool_of(8)
    first = computed(pool, HELLO)

    second = pool.match(pool.digests([*HELLO[:8], 1, 2, 3, 4]))

    assert second == first[:2]
    pool.release(first)
    assert pool.held == 2


def test_only_full_pages_have_a_digest() -> None:
    """Another token may still come into the rest."""
    assert len(pool_of(8).digests(HELLO[:11])) == 2


def test_a_page_is_known_by_all_that_stands_before_it() -> None:
    """The same four tokens elsewhere have other keys and values."""
    pool = pool_of(8)
    computed(pool, HELLO)

    assert pool.match(pool.digests(HELLO[4:])) == []
    assert pool.match(pool.digests([7, 7, 7, 6, *HELLO[4:]])) == []


def test_digests_go_on_behind_a_page() -> None:
    pool = pool_of(8)
    whole = pool.digests(HELLO)

    assert whole[:1] + pool.digests(HELLO[4:], after=whole[0]) == whole


def test_nobody_can_know_the_digests_beforehand() -> None:
    """Two prompts whose digests collide would show one user the other's prefix; each pool has a secret."""
    assert pool_of(1).digests(HELLO) != pool_of(1).digests(HELLO)


def test_what_nobody_holds_is_still_found() -> None:
    pool = pool_of(8)
    pages = computed(pool, HELLO)
    pool.release(pages)

    assert pool.available == 8
    assert pool.match(pool.digests(HELLO)) == pages
    assert pool.available == 5


def test_who_computed_the_same_gets_the_page_that_is_known() -> None:
    """His own one is there for others again."""
    pool = pool_of(8)
    first = computed(pool, HELLO)

    second = computed(pool, HELLO)

    assert second == first
    assert (pool.held, pool.cached) == (3, 3)


def test_without_a_prefix_cache_nothing_is_found() -> None:
    pool = pool_of(8, prefix_cache=False)
    pages = computed(pool, HELLO)
    pool.release(pages)

    assert pool.match(pool.digests(HELLO)) == []
    assert pool.cached == 0


# -- what is forgotten --------------------------------------------------------------------------------------------


def test_what_is_held_is_never_given_to_others() -> None:
    pool = pool_of(3)
    computed(pool, HELLO)

    with pytest.raises(MemoryError):
        pool.allocate(1)


def test_free_pages_go_first() -> None:
    pool = pool_of(4)
    pool.release(computed(pool, HELLO))

    pool.allocate(1)

    assert pool.cached == 3


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    """The beginning alone is of use, the end alone could not be found."""
    pool = pool_of(3)
    pages = computed(pool, HELLO)
    pool.release(pages)

    pool.allocate(1)

    assert pool.match(pool.digests(HELLO)) == pages[:2]


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    pool = pool_of(6)
    for prompt in ([1] * 8, [2] * 8, [3] * 8):
        pool.release(computed(pool, prompt))
    pool.release(pool.match(pool.digests([1] * 8)))

    pool.allocate(2)

    assert [len(pool.match(pool.digests([token] * 8))) for token in (1, 2, 3)] == [2, 0, 2]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=12)), max_size=40))
def test_any_history_keeps_the_books(history: list[tuple[bool, list[int]]]) -> None:
    """Two letters only, so that beginnings are shared all the time, and few pages, so that they are forgotten."""
    pool = PagePool(6, page_tokens=2)
    holders: list[list[int]] = []
    for comes, tokens in history:
        if comes:
            _come(pool, tokens, holders)
        elif holders:
            pool.release(holders.pop(len(tokens) % len(holders)))
        held = {page for pages in holders for page in pages}
        assert pool.held == len(held)
        assert pool.available == 6 - len(held)
        assert pool.cached <= 6

    for pages in holders:
        pool.release(pages)
    assert pool.available == 6
    assert sorted(pool.allocate(6)) == list(range(6))
    assert pool.cached == 0


def _come(pool: PagePool, tokens: list[int], holders: list[list[int]]) -> None:
    """A sequence takes what it finds, computes the rest if there is room, and lets the full pages be found."""
    digests = pool.digests(tokens)
    pages = pool.match(digests)
    missing = pool.pages_for(len(tokens)) - len(pages)
    if missing > pool.available:
        pool.release(pages)
        return
    pages += pool.allocate(missing)
    known = [pool.publish(digest, page) for digest, page in zip(digests, pages, strict=False)]
    assert pool.match(digests) == known, "no page is ever found without those before it"
    pool.release(known)
    holders.append(known + pages[len(known) :])
