"""The step scheduler by example: who computes what in which step, who waits, and who has to go."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import pytest

from headrace_workers.generation.pages import PagePool
from headrace_workers.generation.sequence import Sequence
from headrace_workers.generation.step_scheduler import Planned, StepScheduler

NEW_TOKEN = 99


def scheduler_of(
    pages: int = 100, *, slots: int = 4, max_rows: int = 16, max_positions: int = 1000, prefix_cache: bool = True
) -> StepScheduler:
    """A scheduler over pages of four tokens."""
    return StepScheduler(
        PagePool(pages, page_tokens=4, prefix_cache=prefix_cache),
        slots=slots,
        max_rows=max_rows,
        max_positions=max_positions,
    )


def sequence_of(prompt_tokens: int, *, first: int = 0, max_new_tokens: int = 5) -> Sequence:
    """A prompt of which no other one, of another first token, shares a page."""
    return Sequence(range(first, first + prompt_tokens), max_new_tokens=max_new_tokens, key=first)


def added(scheduler: StepScheduler, *sequences: Sequence) -> StepScheduler:
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def parts(plan: Tokens[Planned]) -> list[tuple[int, int, int, bool]]:
    return [(planned.sequence.key, planned.start, planned.count, planned.draws) for planned in plan]


def compute(scheduler: StepScheduler) -> list[Planned]:
    """One step; every sequence that draws gets a token, and leaves with its last one."""
    plan = scheduler.plan()
    scheduler.computed(plan)
    for planned in plan:
        if planned.draws:
            planned.sequence.generated.append(NEW_TOKEN)
            if len(planned.sequence.generated) == planned.sequence.max_new_tokens:
                scheduler.remove(planned.sequence)
    return plan


def step(scheduler: StepScheduler) -> list[tuple[int, int, int, bool]]:
    return parts(compute(scheduler))


# -- the life of a sequence ---------------------------------------------------------------------------------------


def test_a_prompt_is_computed_and_then_a_row_for_each_token() -> None:
    """The first token is drawn from the prompt's last row; the last one that is drawn is never computed."""
    scheduler = added(scheduler_of(), sequence_of(6, max_new_tokens=3))

    assert [step(scheduler) for _ in range(4)] == [[(0, 0, 6, True)], [(0, 6, 1, True)], [(0, 7, 1, True)], []]
    assert len(scheduler) == 0


def test_a_long_prompt_goes_in_chunks() -> None:
    """Nothing is drawn before its last row."""
    scheduler = added(scheduler_of(max_rows=16), sequence_of(40))

    assert step(scheduler) == [(0, 0, 16, False)]
    assert step(scheduler) == [(0, 16, 16, False)]
    assert step(scheduler) == [(0, 32, 8, True)]


def test_who_comes_joins_at_the_next_step() -> None:
    """What decodes has its rows first; the prompt has what is left of the sixteen."""
    scheduler = added(scheduler_of(max_rows=16), sequence_of(6))
    step(scheduler)

    added(scheduler, sequence_of(40, first=100))

    assert step(scheduler) == [(0, 6, 1, True), (100, 0, 15, False)]


def test_prompts_go_on_beside_any_number_that_decode() -> None:
    """A row for each slot is enough: a prompt has a slot as well."""
    scheduler = added(scheduler_of(slots=3, max_rows=3), sequence_of(1), sequence_of(1, first=50))
    step(scheduler)

    added(scheduler, sequence_of(2, first=100))

    assert step(scheduler) == [(0, 1, 1, True), (50, 1, 1, True), (100, 0, 1, False)]


def test_a_long_prompt_does_not_hold_up_short_ones() -> None:
    """The oldest has half of the rows, the shortest of the others the rest."""
    prompts = [sequence_of(100), sequence_of(30, first=200), sequence_of(6, first=300)]
    scheduler = added(scheduler_of(max_rows=16), *prompts)

    assert step(scheduler) == [(0, 0, 8, False), (200, 0, 2, False), (300, 0, 6, True)]


def test_the_oldest_prompt_has_what_the_others_leave() -> None:
    scheduler = added(scheduler_of(max_rows=16), sequence_of(100), sequence_of(3, first=200))

    assert step(scheduler) == [(0, 0, 13, False), (200, 0, 3, True)]


def test_at_most_so_many_run() -> None:
    """Who waits has the slot of the first that leaves."""
    sequences = [sequence_of(2, first=first, max_new_tokens=2) for first in (0, 50, 100)]
    scheduler = added(scheduler_of(slots=2), *sequences)

    assert [key for key, *_ in step(scheduler)] == [0, 50]
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    step(scheduler)
    assert step(scheduler) == [(100, 0, 2, True)]


def test_what_another_replica_generated_is_computed_with_the_prompt() -> None:
    resumed = Sequence([1, 2, 3], max_new_tokens=5, generated=[4, 5], key=0)
    scheduler = added(scheduler_of(), resumed)

    assert step(scheduler) == [(0, 0, 5, True)]
    assert step(scheduler) == [(0, 5, 1, True)]


def test_a_plan_that_failed_is_made_again() -> None:
    scheduler = added(scheduler_of(), sequence_of(40), sequence_of(3, first=100))

    assert parts(scheduler.plan()) == parts(scheduler.plan())


# -- leaving ------------------------------------------------------------------------------------------------------


def test_whoever_is_removed_gives_everything_back_at_once() -> None:
    pool = PagePool(10, page_tokens=4)
    scheduler = StepScheduler(pool, slots=2, max_rows=16, max_positions=100)
    running, waiting = [sequence_of(6, first=first) for first in (0, 50)], sequence_of(6, first=100)
    added(scheduler, *running, waiting)
    step(scheduler)

    assert [scheduler.remove(sequence) for sequence in (*running, waiting)] == [True] * 3
    assert (pool.held, len(scheduler), running[0].pages) == (0, 0, [])
    assert not scheduler.remove(waiting)


def test_a_sequence_may_leave_while_its_step_is_computed() -> None:
    """Then what became of its rows is nobody's business."""
    leaving, staying = sequence_of(6), sequence_of(6, first=50)
    scheduler = added(scheduler_of(), leaving, staying)
    plan = scheduler.plan()

    scheduler.remove(leaving)
    scheduler.computed(plan)

    assert (leaving.computed, staying.computed) == (0, 6)


# -- beginnings that are shared -----------------------------------------------------------------------------------


def test_a_shared_beginning_is_found() -> None:
    """Two of three pages are the same: eight tokens need not be computed."""
    first, second = (
        Sequence([*range(8), 1, 1, 1], max_new_tokens=1, key=1),
        Sequence(range(11), max_new_tokens=1, key=2),
    )
    pool = PagePool(20, page_tokens=4)
    scheduler = added(StepScheduler(pool, slots=4, max_rows=16, max_positions=100), first)
    step(scheduler)

    added(scheduler, second)

    assert step(scheduler) == [(2, 8, 3, True)]
    assert second.cached_tokens == 8
    assert (pool.asked_tokens, pool.found_tokens) == (22, 8)


def test_the_last_token_is_computed_always() -> None:
    """Its logits are needed, and logits are not kept: of two pages that are known one is computed again."""
    scheduler = scheduler_of()
    for key in (1, 2):
        added(scheduler, Sequence(range(8), max_new_tokens=1, key=key))
        plan = step(scheduler)

    assert plan == [(2, 4, 4, True)]


def test_what_was_generated_is_found_by_the_next_turn_of_a_chat() -> None:
    scheduler = scheduler_of()
    turn = sequence_of(6, max_new_tokens=4)
    added(scheduler, turn)
    while step(scheduler):
        pass

    following = Sequence([*turn.prompt, *turn.generated, 5, 6, 7], max_new_tokens=1)
    added(scheduler, following)
    step(scheduler)

    assert following.cached_tokens == 8


def test_who_would_compute_what_another_is_computing_waits_for_it() -> None:
    """And nobody waits behind him."""
    scheduler = scheduler_of(max_rows=8)
    alike = [Sequence([*range(12), key], max_new_tokens=2, key=key) for key in (1, 2, 3)]
    added(scheduler, *alike, sequence_of(3, first=50))

    assert step(scheduler) == [(1, 0, 5, False), (50, 0, 3, True)]
    assert step(scheduler) == [(50, 3, 1, True), (1, 5, 7, False)]
    assert step(scheduler) == [(1, 12, 1, True), (50, 4, 1, True), (2, 12, 1, True), (3, 12, 1, True)]


def test_nobody_waits_for_one_that_left() -> None:
    scheduler = scheduler_of(max_rows=8)
    alike = [Sequence([*range(12), key], max_new_tokens=2, key=key) for key in (1, 2, 3)]
    added(scheduler, *alike)
    step(scheduler)

    scheduler.remove(alike[0])

    assert step(scheduler) == [(2, 8, 5, True)]


def test_who_waited_is_still_the_older_one() -> None:
    """Of seven rows four are his when he is let in, though a younger prompt was let in before."""
    first, waits = (Sequence([*range(12), *range(50, own)], max_new_tokens=2, key=own) for own in (51, 70))
    scheduler = added(scheduler_of(max_rows=8), first, waits, sequence_of(100, first=200))
    for _ in range(3):
        assert [(key, count) for key, _, count, _ in step(scheduler)] == [(51, 4), (200, 4)]

    assert step(scheduler) == [(51, 12, 1, True), (70, 12, 4, False), (200, 12, 3, False)]


def test_without_the_prefix_cache_nobody_waits() -> None:
    """Without the prefix cache everybody computes everything, at once."""
    alike = [Sequence(range(8), max_new_tokens=2, key=key) for key in (1, 2)]
    scheduler = added(scheduler_of(prefix_cache=False), *alike)

    assert step(scheduler) == [(1, 0, 8, True), (2, 0, 8, True)]
    assert set(alike[0].pages).isdisjoint(alike[1].pages)


# -- when pages run out -------------------------------------------------------------------------------------------


def test_the_youngest_is_preempted_and_goes_on_later() -> None:
    """Its pages go to the older one. It loses nothing but the time to compute its tokens again."""
    old, young = sequence_of(4, max_new_tokens=13), sequence_of(4, first=50, max_new_tokens=13)
    scheduler = added(scheduler_of(pages=5), old, young)
    while not young.preemptions:
        step(scheduler)
    assert (young.pages, young.computed, scheduler.waiting) == ([], 0, 1)

    while step(scheduler):
        assert old.preemptions == 0

    assert (len(old.generated), len(young.generated)) == (13, 13)


def test_what_a_preempted_sequence_finds_of_its_own_is_no_success_of_the_cache() -> None:
    pool = PagePool(5, page_tokens=4)
    scheduler = StepScheduler(pool, slots=4, max_rows=16, max_positions=100)
    old, young = sequence_of(4, max_new_tokens=13), sequence_of(8, first=50, max_new_tokens=8)
    added(scheduler, old, young)
    while not young.preemptions:
        step(scheduler)
    while scheduler.waiting:
        plan = step(scheduler)

    assert [(key, start) for key, start, *_ in plan] == [(50, 4)], "it finds one page of its own"
    assert (pool.asked_tokens, pool.found_tokens, young.cached_tokens) == (12, 0, 0)


def test_who_comes_is_let_in_only_beside_a_page_for_each_that_may_grow() -> None:
    """Else those who run would soon have to preempt him: five pages are one and one, two kept back, and one too few."""
    sequences = [sequence_of(4, first=first, max_new_tokens=13) for first in (0, 50, 100)]
    scheduler = added(scheduler_of(pages=5), *sequences)

    assert [key for key, *_ in step(scheduler)] == [0, 50]


def test_a_sequence_that_fills_all_pages_runs_alone() -> None:
    giant = sequence_of(10, max_new_tokens=7)
    scheduler = added(scheduler_of(pages=4), sequence_of(4, first=50), giant)
    while step(scheduler):
        pass

    assert len(giant.generated) == 7


@pytest.mark.parametrize(
    ("sequence", "complaint"),
    [
        (sequence_of(0), "must have at least one"),
        (Sequence([1], max_new_tokens=2, generated=[1, 2]), "all 2 tokens of the sequence are generated already"),
        (sequence_of(10, max_new_tokens=8), "may come to 18 tokens and there is room for 17"),
        (sequence_of(1000), "may come to 1005 tokens and there is room for 17"),
    ],
)
def test_what_could_never_run_is_refused(sequence: Sequence, complaint: str) -> None:
    scheduler = scheduler_of(pages=4)

    with pytest.raises(ValueError, match=complaint):
        scheduler.add(sequence)
    assert len(scheduler) == 0


def test_positions_are_a_limit_as_well() -> None:
    scheduler = scheduler_of(max_positions=12)
    assert scheduler.longest == 12

    with pytest.raises(ValueError, match="may come to 13 tokens and there is room for 12"):
        scheduler.add(sequence_of(8))


def test_nothing_is_added_twice() -> None:
    sequence = sequence_of(3)
    scheduler = added(scheduler_of(), sequence)

    with pytest.raises(ValueError, match="was added before"):
        scheduler.add(sequence)


@pytest.mark.parametrize(("slots", "max_rows"), [(0, 4), (5, 4)])
def test_there_must_be_a_slot_and_a_row_for_it(slots: int, max_rows: int) -> None:
    with pytest.raises(ValueError, match="there must be a slot, and a row for each"):
        scheduler_of(slots=slots, max_rows=max_rows)


# -- guesses ------------------------------------------------------------------------------------------------------


def decoding(scheduler: StepScheduler, *sequences: Sequence) -> StepScheduler:
    """A scheduler whose sequences have drawn their first token."""
    added(scheduler, *sequences)
    compute(scheduler)
    return scheduler


def test_a_sequence_that_decodes_carries_guesses_behind_its_last_token() -> None:
    """All four rows are drawn from; two guesses were right, so three tokens are new."""
    sequence = sequence_of(6, max_new_tokens=20)
    scheduler = decoding(scheduler_of(), sequence)

    plan = scheduler.plan(drafts=3)
    assert plan == [Planned(sequence, 6, 4, True, drafts=3)]

    scheduler.computed(plan, accepted=[2])
    sequence.generated += [1, 2, 3]
    assert (sequence.computed, sequence.left) == (9, 1)
    assert step(scheduler) == [(0, 9, 1, True)]


def test_prompts_have_their_rows_before_guesses() -> None:
    sequence, prompt = sequence_of(6, max_new_tokens=20), sequence_of(13, first=50)
    scheduler = added(decoding(scheduler_of(max_rows=16), sequence), prompt)

    assert scheduler.plan(drafts=3) == [Planned(sequence, 6, 3, True, drafts=2), Planned(prompt, 0, 13, True)]


def test_no_guess_goes_behind_the_last_token_that_may_come() -> None:
    """Of three that are left one is drawn anyway."""
    sequence = sequence_of(6, max_new_tokens=4)
    scheduler = decoding(scheduler_of(), sequence)

    assert [planned.drafts for planned in scheduler.plan(drafts=8)] == [2]


def test_for_guesses_nobody_is_preempted() -> None:
    """Where there is no page, there is no guess."""
    old, young = sequence_of(6, max_new_tokens=3), sequence_of(6, first=50, max_new_tokens=3)
    scheduler = decoding(scheduler_of(pages=4), old, young)
    for sequence in (old, young):
        sequence.max_new_tokens = 9

    assert [planned.drafts for planned in scheduler.plan(drafts=8)] == [1, 1]
    assert scheduler.preemptions == 0


def test_pages_of_guesses_that_were_wrong_are_kept_and_found_by_nobody() -> None:
    pool = PagePool(20, page_tokens=4)
    scheduler = StepScheduler(pool, slots=4, max_rows=32, max_positions=100)
    sequence = sequence_of(4, max_new_tokens=20)
    decoding(scheduler, sequence)

    scheduler.computed(scheduler.plan(drafts=7), accepted=[0])
    sequence.generated.append(1)

    assert (len(sequence.pages), sequence.computed, pool.cached) == (3, 5, 1)


def test_pages_of_guesses_that_were_right_are_found_once_the_tokens_are_there() -> None:
    """The digest of a page is that of its tokens, which are appended behind `computed`."""
    pool = PagePool(20, page_tokens=4)
    scheduler = StepScheduler(pool, slots=4, max_rows=32, max_positions=100)
    sequence = sequence_of(4, max_new_tokens=20)
    decoding(scheduler, sequence)

    scheduler.computed(scheduler.plan(drafts=7), accepted=[7])
    sequence.generated += range(60, 68)
    compute(scheduler)

    assert pool.match(pool.digests([0, 1, 2, 3, NEW_TOKEN, *range(60, 67)])) == sequence.pages[:3]
