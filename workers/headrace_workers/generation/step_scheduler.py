"""What each step computes: the pure heart of the decoder engine, without torch and without a clock.

*Sequences join and leave at every step* (iteration-level scheduling: Orca, Yu et al., OSDI 2022). A step has a bounded
number of rows. Each sequence that decodes has one of them first; prompts have the rest, in chunks, so that a long one
delays nobody's next token by more than a step of that size (Sarathi-Serve, Agrawal et al., OSDI 2024). Of the rows for
prompts the oldest has at least half and the shortest others have the rest: a long prompt does not hold up the short
ones behind it, nor they it.

*A beginning that many share is computed once.* Whoever would compute a page that a running sequence is about to
compute is not admitted yet; those behind it are. It never waits for one that does not run.

*When pages run out, the youngest is preempted*: it gives its pages back and later computes its tokens anew, as far as
they are not in the cache. The oldest never is, and it always fits, so every sequence becomes the oldest and ends.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Numbers
from dataclasses import dataclass
from operator import attrgetter

from headrace_workers.generation.pages import PagePool
from headrace_workers.generation.sequence import Sequence

__all__ = ["Planned", "StepScheduler"]


@dataclass(slots=True)
class Planned:
    """One sequence's part in a step."""

    sequence: Sequence
    start: int
    """Position of its first row."""
    count: int
    """How many rows it has; behind the tokens it has, `drafts` of them are for tokens that are only guessed."""
    draws: bool
    """Whether its next token is drawn: from its last row, or, with drafts, from each of its last 1 + `drafts` rows."""
    drafts: int = 0


class _Entry:
    """What the scheduler knows of a sequence."""

    __slots__ = ("admitted", "arrival", "digests", "most_pages", "published", "running", "sequence", "waits_for")

    def __init__(self, sequence: Sequence, *, arrival: int, most_pages: int) -> None:
        self.sequence = sequence
        self.arrival = arrival
        self.most_pages = most_pages
        """What it may come to hold."""
        self.digests: list[bytes] = []
        """Of the full pages of its tokens, as far as they were needed yet."""
        self.published = 0
        """How many of its pages can be found in the cache."""
        self.waits_for: bytes | None = None
        """The page that another one was about to compute when this one was last looked at."""
        self.running = False
        self.admitted = False
        """Whether it ever ran."""


_BY_ARRIVAL = attrgetter("arrival")


class StepScheduler:
    """The sequences of one runner, and what is computed for them next.

    The owner calls `plan`, has the step computed, calls `computed` and appends what was drawn to `generated` of each
    sequence, or removes it; then it plans again. `add` and `remove` are allowed at any time.

    Args:
        pool: the runner's pages, which nobody else takes from.
        slots: how many sequences run at once.
        max_rows: how many rows a step has at most; one for each slot at least. Whose prompt goes on has a slot too, so
            there is always a row for it.
        max_positions: how many tokens a sequence has at most.

    Raises:
        ValueError: no slot, or fewer rows than slots.
    """

    def __init__(self, pool: PagePool, *, slots: int, max_rows: int, max_positions: int) -> None:
        if not 1 <= slots <= max_rows:
            raise ValueError(f"{slots} slots and {max_rows} rows: there must be a slot, and a row for each")
        self._pool = pool
        self._slots = slots
        self._max_rows = max_rows
        self._longest = min(max_positions, pool.pages * pool.page_tokens + 1)
        self._entries: dict[Sequence, _Entry] = {}
        self._waiting: list[_Entry] = []
        self._running: list[_Entry] = []
        self._coming: dict[bytes, _Entry] = {}
        self._arrivals = 0
        self.preemptions = 0
        """How often a sequence had to give its pages back."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def running(self) -> int:
        """How many sequences have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    @property
    def longest(self) -> int:
        """How many tokens a sequence may have, prompt and all it may generate."""
        return self._longest

    # -- coming and going -----------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in; it runs when its turn comes.

        Raises:
            ValueError: it has no prompt or nothing left to generate, could not be held even alone, or is here already.
        """
        self._check(sequence)
        # The last token is drawn and never computed: it takes no page.
        most_pages = self._pool.pages_for(len(sequence.prompt) + sequence.max_new_tokens - 1)
        entry = _Entry(sequence, arrival=self._arrivals, most_pages=most_pages)
        self._arrivals += 1
        self._entries[sequence] = entry
        self._waiting.append(entry)
        self._extend_digests(entry)

    def _check(self, sequence: Sequence) -> None:
        most = len(sequence.prompt) + sequence.max_new_tokens
        if sequence in self._entries:
            raise ValueError("the sequence was added before")
        if not sequence.prompt:
            raise ValueError("the prompt has no token; it must have at least one")
        if sequence.full:
            raise ValueError(f"all {sequence.max_new_tokens} tokens of the sequence are generated already")
        if most > self._longest:
            raise ValueError(f"prompt and answer may come to {most} tokens and there is room for {self._longest}")

    def remove(self, sequence: Sequence) -> bool:
        """Let a sequence go that has ended or is not wanted any more; its pages are there for others at once.

        Returns:
            Whether it was here.
        """
        entry = self._entries.pop(sequence, None)
        if entry is None:
            return False
        if entry.running:
            self._running.remove(entry)
            self._stop(entry)
        else:
            self._waiting.remove(entry)
        return True

    def _stop(self, entry: _Entry) -> None:
        """Take everything from a sequence that ran."""
        sequence = entry.sequence
        self._pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        entry.running = False
        for digest in entry.digests[entry.published :]:
            self._has_come(digest, entry)

    # -- planning -------------------------------------------------------------------------------------------

    def plan(self, drafts: int = 0) -> list[Planned]:
        """What the next step computes; empty if there is nothing to do. Planning again instead of computing is allowed.

        Args:
            drafts: how many tokens may be guessed for each sequence that decodes, out of the rows that are left. How
                many each has stands in `Planned.drafts`: they belong into its rows behind its last token.
        """
        plan: list[Planned] = []
        prompts: list[_Entry] = []
        size = self._pool.page_tokens
        # Victims are taken from the end of the list, which the loop then does not reach.
        for entry in self._running:
            sequence = entry.sequence
            length, computed = len(sequence.prompt) + len(sequence.generated), sequence.computed
            if length > len(sequence.pages) * size and not self._grow(entry):
                break
            if length - computed == 1:
                plan.append(Planned(sequence, computed, 1, True))
            elif length > computed:
                prompts.append(entry)
        if self._waiting and len(self._running) < self._slots:
            prompts += self._admit()
        if prompts:
            self._plan_prompts(plan, prompts)
        if drafts > 0:
            self._plan_drafts(plan, drafts)
        return plan

    def _grow(self, entry: _Entry) -> bool:
        """Get pages for all tokens of a sequence, if need be from younger ones. False if it was preempted itself."""
        sequence = entry.sequence
        missing = self._pool.pages_for(len(sequence)) - len(sequence.pages)
        while self._pool.available < missing:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is entry:
                return False
        sequence.pages += self._pool.allocate(missing)
        return True

    def _preempt(self, entry: _Entry) -> None:
        self._stop(entry)
        self._extend_digests(entry)
        entry.sequence.preemptions += 1
        self.preemptions += 1
        insort(self._waiting, entry, key=_BY_ARRIVAL)

    def _plan_prompts(self, plan: list[Planned], prompts: list[_Entry]) -> None:
        """Plan chunks of prompts with the rows that decoding leaves."""
        prompts.sort(key=_BY_ARRIVAL)
        lefts = [entry.sequence.left for entry in prompts]
        for entry, left, rows in zip(prompts, lefts, _chunks(lefts, self._max_rows - len(plan)), strict=True):
            if rows:
                plan.append(Planned(entry.sequence, entry.sequence.computed, rows, rows == left))

    def _plan_drafts(self, plan: list[Planned], drafts: int) -> None:
        """Give sequences that decode rows for guesses; for guesses nobody is preempted."""
        rows = self._max_rows - sum(planned.count for planned in plan)
        for planned in plan:
            sequence, start = planned.sequence, planned.start
            # One token is drawn behind the last guess.
            wanted = min(drafts, rows, sequence.max_new_tokens - len(sequence.generated) - 1)
            if planned.count > 1 or not planned.draws or wanted <= 0:
                continue
            missing = self._pool.pages_for(start + 1 + wanted) - len(sequence.pages)
            if missing > 0:
                sequence.pages += self._pool.allocate(min(missing, self._pool.available))
            planned.drafts = min(wanted, len(sequence.pages) * self._pool.page_tokens - start - 1)
            planned.count += planned.drafts
            rows -= planned.drafts

    # -- admission ------------------------------------------------------------------------------------------

    def _admit(self) -> list[_Entry]:
        """Give slots to those who wait, oldest first, as long as there are slots and pages."""
        admitted: list[_Entry] = []
        # A page for each that may still grow is kept back: so preemption stays rare.
        reserve = sum(len(entry.sequence.pages) < entry.most_pages for entry in self._running)
        for entry in self._waiting:
            if len(self._running) == self._slots:
                break
            if entry.waits_for in self._coming:
                continue
            found = self._pool.match(self._useful_digests(entry))
            if self._must_wait(entry, len(found)):
                self._pool.release(found)
                continue
            if not self._start(entry, found, reserve):
                self._pool.release(found)
                break
            reserve += len(entry.sequence.pages) < entry.most_pages
            admitted.append(entry)
        if admitted:
            self._waiting = [entry for entry in self._waiting if not entry.running]
        return admitted

    def _useful_digests(self, entry: _Entry) -> list[bytes]:
        """Of the pages that need not be computed; the last token always is, for the sake of its logits."""
        return entry.digests[: (len(entry.sequence) - 1) // self._pool.page_tokens]

    def _must_wait(self, entry: _Entry, found: int) -> bool:
        """Whether the page behind those that were found is about to be computed by another."""
        useful = self._useful_digests(entry)
        entry.waits_for = useful[found] if found < len(useful) and useful[found] in self._coming else None
        return entry.waits_for is not None

    def _start(self, entry: _Entry, found: list[int], reserve: int) -> bool:
        """Let a sequence run on the pages that were found for it and new ones. False if there are too few."""
        sequence, pool = entry.sequence, self._pool
        total = pool.pages_for(len(sequence))
        # What it will want next is kept back as well. Alone it always fits: `add` saw to that.
        if total - len(found) + reserve + (total < entry.most_pages) > pool.available:
            return False
        sequence.pages = found + pool.allocate(total - len(found))
        sequence.computed = len(found) * pool.page_tokens
        entry.published, entry.running = len(found), True
        self._note_first_admission(entry)
        for digest in entry.digests[len(found) :]:
            self._coming.setdefault(digest, entry)
        insort(self._running, entry, key=_BY_ARRIVAL)
        return True

    def _note_first_admission(self, entry: _Entry) -> None:
        if entry.admitted:
            return
        entry.admitted = True
        sequence = entry.sequence
        sequence.cached_tokens = sequence.computed
        self._pool.note_admitted(asked_tokens=len(sequence), found_tokens=sequence.computed)

    # -- what was computed ----------------------------------------------------------------------------------

    def computed(self, plan: Numbers[Planned], accepted: Numbers[int] | None = None) -> None:
        """Note that a step was computed: its pages that are full now can be found by others.

        Args:
            plan: what `plan` returned last. Sequences that were removed since are passed over.
            accepted: for each of the plan, how many of its drafts were right; the others' rows count for nothing.
                Needed where there were drafts. `generated` then grows by one more than that.
        """
        size = self._pool.page_tokens
        for index, planned in enumerate(plan):
            sequence = planned.sequence
            entry = self._entries.get(sequence)
            if entry is None or not entry.running:
                continue
            sequence.computed = planned.start + planned.count
            if planned.drafts:
                assert accepted is not None, "who drafts says what came of it"
                sequence.computed -= planned.drafts - accepted[index]
            if sequence.computed >= (entry.published + 1) * size and self._pool.prefix_cache:
                self._publish(entry)

    def _publish(self, entry: _Entry) -> None:
        """Publish the pages that are full of tokens known for sure: those just accepted are appended only later."""
        sequence = entry.sequence
        size, sure = self._pool.page_tokens, min(sequence.computed, len(sequence))
        self._extend_digests(entry)
        for page in range(entry.published, sure // size):
            digest = entry.digests[page]
            sequence.pages[page] = self._pool.publish(digest, sequence.pages[page])
            self._has_come(digest, entry)
        entry.published = sure // size

    def _extend_digests(self, entry: _Entry) -> None:
        """Compute the digests of all full pages of a sequence that lack them."""
        known = entry.digests
        tokens = entry.sequence.tokens(len(known) * self._pool.page_tokens, len(entry.sequence))
        known += self._pool.digests(tokens, after=known[-1] if known else None)

    def _has_come(self, digest: bytes, entry: _Entry) -> None:
        """Nobody needs to wait any more for this sequence to compute a page."""
        if self._coming.get(digest) is entry:
            del self._coming[digest]


def _chunks(lefts: list[int], rows: int) -> list[int]:
    """How many of the rows each prompt has; `lefts` is what each could use, the oldest first."""
    chunks = [0] * len(lefts)
    oldest = min(lefts[0], rows - rows // 2)
    rest = rows - oldest
    for index in sorted(range(1, len(lefts)), key=lefts.__getitem__):
        chunks[index] = min(lefts[index], rest)
        rest -= chunks[index]
    chunks[0] = min(lefts[0], oldest + rest)
    return chunks
