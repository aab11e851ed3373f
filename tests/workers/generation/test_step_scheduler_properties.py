"""The step scheduler under any history, with a runner of hashes that shows whether each row sees the right values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_workers.generation.pages import PagePool
from headrace_workers.generation.sequence import Sequence
from headrace_workers.generation.step_scheduler import Planned, StepScheduler

LETTERS = 2
"""So few tokens that beginnings are shared all the time."""
WRONG = -1


@dataclass
class Job:
    """A sequence, when it comes, and when, if ever, somebody loses interest."""

    sequence: Sequence
    comes: int
    leaves: int | None


@dataclass
class Machine:
    """A scheduler, and a runner whose keys and values are hashes of all tokens up to theirs."""

    pages: int
    slots: int
    max_rows: int
    drafts: int = 0
    page_tokens: int = 2
    prefix_cache: bool = True
    seed: int = 0
    here: list[Sequence] = field(default_factory=list)
    stalled: int = 0
    """Steps since the oldest got on."""

    def __post_init__(self) -> None:
        self.pool = PagePool(self.pages, page_tokens=self.page_tokens, prefix_cache=self.prefix_cache)
        self.scheduler = StepScheduler(self.pool, slots=self.slots, max_rows=self.max_rows, max_positions=1000)
        self.random = Random(self.seed)
        self.values: dict[tuple[int, int], int] = {}

    def add(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self.here.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        held = len(sequence.pages)
        available = self.pool.available
        assert self.scheduler.remove(sequence)
        self.here.remove(sequence)
        assert sequence.pages == []
        assert self.pool.available <= available + held

    def step(self, *, thorough: bool = True) -> None:
        """Plan, compute, draw; `thorough`: look at every value that any row could see."""
        before = {one: (one.left == 1 and bool(one.pages), one.preemptions) for one in self.here}
        plan = self.scheduler.plan(self.drafts)
        self.check_plan(plan, before)
        guesses = [self.write(planned) for planned in plan]
        if thorough:
            self.check_pages()
        accepted = [self.random.randint(0, guessed) for guessed in guesses]
        self.scheduler.computed(plan, accepted)
        for planned, right in zip(plan, accepted, strict=True):
            if planned.draws:
                self.draw(planned.sequence, right + 1)

    def check_plan(self, plan: list[Planned], before: dict[Sequence, tuple[bool, int]]) -> None:
        planned = {one.sequence: one for one in plan}
        assert len(planned) == len(plan)
        assert sum(one.count for one in plan) <= self.max_rows
        assert self.scheduler.running <= self.slots
        assert all(one.draws == (one.start + one.count == len(one.sequence) + one.drafts) for one in plan)
        for sequence, (decoded, preemptions) in before.items():
            if decoded and sequence.preemptions == preemptions:
                assert planned[sequence].draws, "whoever decodes does so in every step"
        if self.here:
            oldest = self.here[0]
            assert oldest.preemptions == before[oldest][1], "the oldest is never preempted"
            self.stalled = 0 if oldest in planned else self.stalled + 1
            assert self.stalled <= 40, "the oldest waits at most for what another one is computing"

    def write(self, planned: Planned) -> int:
        """Put values into the pages, those of guesses wrong ones. Returns how many guesses there are."""
        sequence = planned.sequence
        values = self.values_of(sequence)
        for position in range(planned.start, planned.start + planned.count):
            right = position < len(sequence)
            self.values[self.place(sequence, position)] = values[position] if right else WRONG
        return planned.drafts

    def draw(self, sequence: Sequence, count: int) -> None:
        """Append tokens that are a function of those before them, with the values of guesses that were right."""
        for _ in range(count):
            position = len(sequence)
            sequence.generated.append(self.values_of(sequence)[-1] % LETTERS)
            if position < sequence.computed:
                self.values[self.place(sequence, position)] = self.values_of(sequence)[position]
        if len(sequence.generated) == sequence.max_new_tokens:
            self.remove(sequence)

    def place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.pages[position // self.page_tokens], position % self.page_tokens

    def values_of(self, sequence: Sequence) -> list[int]:
        values, value = [], 0
        for token in sequence.tokens(0, len(sequence)):
            value = hash((value, token))
            values.append(value)
        return values

    def check_pages(self) -> None:
        """Everybody sees his own tokens, and the books are right."""
        holders = Counter(page for sequence in self.here for page in sequence.pages)
        assert self.pool.held == len(holders)
        assert self.pool.held + self.pool.available == self.pages
        for sequence in self.here:
            values = self.values_of(sequence)
            for position in range(sequence.computed):
                assert self.values[self.place(sequence, position)] == values[position]
            unfinished = sequence.pages[sequence.computed // self.page_tokens :]
            assert all(holders[page] == 1 for page in unfinished), "only full pages are shared"

    def run(self, jobs: list[Job]) -> int:
        """Let jobs come and go until nobody is left; how many steps that took."""
        step = 0
        while self.here or any(job.comes >= step for job in jobs):
            for job in jobs:
                if job.comes == step:
                    self.add(job.sequence)
                if job.leaves == step and job.sequence in self.here:
                    self.remove(job.sequence)
            self.step()
            step += 1
            assert step < 40 + sum(2 * (len(job.sequence.prompt) + job.sequence.max_new_tokens) for job in jobs)
        return step


@st.composite
def jobs_of(draw: st.DrawFn, most_tokens: int) -> list[Job]:
    jobs = []
    for key in range(draw(st.integers(1, 8))):
        prompt = draw(st.lists(st.integers(0, LETTERS - 1), min_size=1, max_size=most_tokens - 1))
        new = draw(st.integers(1, min(8, most_tokens - len(prompt))))
        generated = [0] * draw(st.integers(0, new - 1))
        sequence = Sequence(prompt, max_new_tokens=new, generated=generated, key=key)
        comes = draw(st.integers(0, 10))
        jobs.append(Job(sequence, comes, draw(st.none() | st.integers(comes + 1, 25))))
    return jobs


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_history_keeps_every_promise(data: st.DataObject) -> None:
    """Values, books, budgets, the oldest, and an end for everybody: see the asserts above."""
    pages, slots = data.draw(st.integers(3, 12), "pages"), data.draw(st.integers(1, 4), "slots")
    machine = Machine(
        pages=pages,
        slots=slots,
        max_rows=slots + data.draw(st.integers(0, 6), "more rows"),
        drafts=data.draw(st.integers(0, 3), "drafts"),
        prefix_cache=data.draw(st.booleans(), "prefix cache"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )
    jobs = data.draw(jobs_of(most_tokens=2 * pages + 1), "jobs")

    machine.run(jobs)

    assert len(machine.scheduler) == 0
    assert machine.pool.available == pages
    for job in jobs:
        assert job.leaves is not None or len(job.sequence.generated) == job.sequence.max_new_tokens


def test_ten_thousand_jobs_leave_nothing_behind() -> None:
    """Few pages, many of them shared, a tenth of the jobs cancelled at any moment: all pages are back at the end."""
    machine = Machine(pages=40, slots=8, max_rows=24, page_tokens=4, drafts=1)
    random, left, steps = Random(5), 10_000, 0
    while left or machine.here:
        while left and len(machine.here) < 12 and random.random() < 0.8:
            machine.add(_random_sequence(random))
            left -= 1
        if machine.here and random.random() < 0.1:
            machine.remove(random.choice(machine.here))
        machine.step(thorough=steps % 50 == 0)
        steps += 1

    assert machine.scheduler.preemptions > 0, "pages never ran out: this shows nothing"
    assert machine.pool.found_tokens > 0
    assert machine.pool.available == 40
    assert sorted(machine.pool.allocate(40)) == list(range(40))
    assert machine.pool.cached == 0


def _random_sequence(random: Random) -> Sequence:
    """A short answer to one of three beginnings and something of its own."""
    begin = [random.randrange(3)] * random.randrange(12)
    own = [random.randrange(LETTERS) for _ in range(random.randrange(1, 12))]
    return Sequence(begin + own, max_new_tokens=random.randrange(1, 16))


def test_preemption_is_rare() -> None:
    """A third of the pages that all who have a slot could fill, answers of any length: most keep their place."""
    machine = Machine(pages=100, slots=16, max_rows=64, page_tokens=4, prefix_cache=False)
    random, jobs = Random(7), 400
    for _ in range(jobs):
        machine.add(Sequence([random.randrange(9) for _ in range(16)], max_new_tokens=random.randrange(1, 64)))
    while machine.here:
        machine.step(thorough=False)

    assert 0 < machine.scheduler.preemptions < jobs / 2, "with no page kept back it is more than one for each job"
