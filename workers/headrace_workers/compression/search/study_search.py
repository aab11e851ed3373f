"""The search for a recipe that reaches a target: propose, try a little, try the best in full, always know the best yet.

`search` knows neither models nor training. What it needs of them comes in as a `Study`, which proposes, tries
candidates out and judges finalists. Time is what the clock that it is given says.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from headrace.errors import GateError, HeadraceError
from headrace_workers.compression.search import pareto
from headrace_workers.compression.search.bracket import FIDELITIES, Bracket, Outcome, Trial
from headrace_workers.compression.search.candidates import Candidate
from headrace_workers.compression.search.front import Ended, Entry, Failed, Front, choose
from headrace_workers.compression.search.journal import Journal, Judged, Question, Tried
from headrace_workers.compression.search.latency_table import LatencyTable, LinearUse
from headrace_workers.compression.search.served import ServedFigures
from headrace_workers.compression.search.target import Target

__all__ = ["OutOfTime", "Progress", "Study", "Tryout", "explain_miss", "search"]

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Takes what is being done, and the share of the budget that is spent. Called at every step of a training."""

TRIALS: Final = "trials"
_FULL: Final = len(FIDELITIES) - 1
_SERVED_SHARE: Final = 0.2
"""Of the budget, what is kept for measuring finalists behind the service."""
_FINALISTS: Final = 3


class OutOfTime(Exception):  # noqa: N818 -- no error: the budget is spent, which is an ordinary end
    """The budget is spent; raised out of `progress`, so that no training outlives it."""


@dataclass(frozen=True)
class Tryout:
    """What came of trying a candidate."""

    figures: dict[str, float]
    """By the names of targets' quantities; `speed`, `size` and `drop` are always among them."""
    uses: Sequence[LinearUse]


class Study(Protocol):
    """A model and what can be done with it, as the search sees it."""

    @property
    def question(self) -> Question:
        """What trials are comparable under."""
        ...

    @property
    def model(self) -> str:
        """What its user calls it."""
        ...

    @property
    def table(self) -> LatencyTable:
        """Of this node, with all shapes of what was proposed or tried until now."""
        ...

    @property
    def original(self) -> Sequence[LinearUse]:
        """The linear layers of the model as it came."""
        ...

    def first(self, progress: Progress) -> Candidate:
        """What is tried before anything else, in full: it needs no training."""
        ...

    def propose(self, target: Target, rest_ms: float, progress: Progress) -> list[Candidate]:
        """Candidates, the most promising first; the first one may be among them."""
        ...

    def try_out(self, candidate: Candidate, fidelity: float, artifact: Path, progress: Progress) -> Tryout:
        """Make a candidate with a share of its training, write it to `artifact`, and judge it.

        Raises:
            CompressionError: it cannot be made.
        """
        ...

    def judge(self, artifact: Path | None) -> tuple[dict[str, float], ServedFigures | None]:
        """Judge a finalist, or the model as it came: quality on held-out examples, and what it does behind a service.

        The first is empty for the model as it came, the second None where there is no service.
        """
        ...


@dataclass
class _Search:
    study: Study
    target: Target
    folder: Path
    deadline_s: float
    clock: Callable[[], float]
    say: Progress
    started_s: float
    journal: Journal
    rest_ms: float = 0.0
    candidates: dict[str, Candidate] = field(default_factory=dict)

    # -- trying -------------------------------------------------------------------------------------------

    def run(self) -> Ended:
        """All of it; how it ended."""
        ended: Ended = "complete"
        try:
            self._try_all(self.deadline_s - _SERVED_SHARE * (self.deadline_s - self.started_s))
        except OutOfTime:
            ended = "budget"
        except KeyboardInterrupt:
            return "interrupted"
        try:
            self._judge_finalists()
        except OutOfTime:
            ended = "budget"
        except KeyboardInterrupt:
            return "interrupted"
        return ended

    def _try_all(self, until_s: float) -> None:
        first = self.study.first(self._watch("beginning", until_s))
        self.candidates[first.key] = first
        anchor = self._known(first.key, _FULL) or self._try(first, Trial(first.key, _FULL), until_s)
        if anchor.figures:
            self.rest_ms = self.study.table.rest_ms(anchor.uses, self.study.original, anchor.figures["speed"])
        proposed = self.study.propose(self.target, self.rest_ms, self._watch("proposing", until_s))
        others = [one for one in proposed if one.key != first.key]
        self.candidates |= {candidate.key: candidate for candidate in others}
        bracket = Bracket([candidate.key for candidate in others], self._outcomes({one.key for one in others}))
        while (trial := bracket.next(until_s - self.clock())) is not None:
            bracket.record(trial, self._outcome(self._try(self.candidates[trial.key], trial, until_s)))
        if not bracket.complete:
            raise OutOfTime

    def _try(self, candidate: Candidate, trial: Trial, until_s: float) -> Tried:
        """Try a candidate out, and remember what came of it."""
        if self.clock() >= until_s:
            raise OutOfTime
        fidelity, began_s = FIDELITIES[trial.rung], self.clock()
        where = f"{TRIALS}/{candidate.key}-{trial.rung}"
        figures: dict[str, float] = {}
        uses: Sequence[LinearUse] = ()
        error = ""
        try:
            tryout = self.study.try_out(candidate, fidelity, self.folder / where, self._watch(candidate.name, until_s))
            figures, uses = tryout.figures, tryout.uses
        except HeadraceError as problem:
            error = str(problem) or type(problem).__name__
            log.warning("%s cannot be made: %s", candidate.name, error)
        tried = Tried(
            key=candidate.key,
            name=candidate.name,
            rung=trial.rung,
            fidelity=fidelity,
            recipe=candidate.recipe,
            seconds=self.clock() - began_s,
            figures=figures,
            uses=list(uses),
            artifact="" if error else where,
            error=error,
        )
        self.journal.add(tried)
        self.front("budget").write(self.folder)
        return tried

    def _watch(self, name: str, until_s: float) -> Progress:
        def progress(what: str, _share: float) -> None:
            now_s = self.clock()
            if now_s >= until_s:
                raise OutOfTime
            self.say(f"{name}: {what}", self._spent(now_s))

        return progress

    def _spent(self, now_s: float) -> float:
        whole = self.deadline_s - self.started_s
        return min(1.0, (now_s - self.started_s) / whole) if whole > 0 else 1.0

    # -- what is known ------------------------------------------------------------------------------------

    def _known(self, key: str, rung: int) -> Tried | None:
        return next((tried for tried in self.journal.tried if (tried.key, tried.rung) == (key, rung)), None)

    def _outcomes(self, keys: set[str]) -> dict[Trial, Outcome]:
        known = [tried for tried in self.journal.tried if tried.key in keys]
        return {Trial(tried.key, tried.rung): self._outcome(tried) for tried in known}

    def _outcome(self, tried: Tried) -> Outcome:
        point = None if tried.error else _entry(tried, None).point
        trained = tried.key not in self.candidates or self.candidates[tried.key].trains
        return Outcome(point, self.target.missing(tried.figures), tried.seconds, trained)

    def entries(self) -> list[Entry]:
        """Each candidate as it was tried last, those on the front marked."""
        last: dict[str, Tried] = {}
        for tried in self.journal.tried:
            if not tried.error and (tried.key not in last or tried.rung > last[tried.key].rung):
                last[tried.key] = tried
        found = [_entry(tried, self.journal.judged.get(tried.artifact)) for tried in last.values()]
        best = {point.name for point in pareto.front([entry.point for entry in found])}
        return [entry.model_copy(update={"on_front": entry.key in best}) for entry in found]

    def front(self, ended: Ended) -> Front:
        """The best so far."""
        entries, study = self.entries(), self.study
        chosen = choose(entries, self.target) if entries else None
        return Front(
            model=study.model,
            source_sha256=study.question.source_sha256,
            data_sha256=study.question.data_sha256,
            seed=study.question.seed,
            target=str(self.target),
            node=study.table.node,
            original=list(study.original),
            rest_ms=self.rest_ms,
            timings=study.table,
            original_served=None if (first := self.journal.judged.get("")) is None else first.served,
            entries=entries,
            failed=[Failed(name=tried.name, reason=tried.error) for tried in self.journal.tried if tried.error],
            chosen="" if chosen is None else chosen.key,
            shortfalls=[] if chosen is None else [str(one) for one in self.target.shortfalls(chosen.asked)],
            ended=ended,
            seconds=round(sum(tried.seconds for tried in self.journal.tried), 3),
        )

    # -- finalists ----------------------------------------------------------------------------------------

    def _judge_finalists(self) -> None:
        """The model as it came, then finalists, the one that would be chosen first."""
        if finalists := self._finalists():
            original = self._judged("the model as it came", "", None)
            for entry in finalists:
                self._judged(entry.name, entry.artifact, original.served)

    def _finalists(self) -> list[Entry]:
        """Chosen by what the trials came to, and not by what finalists were judged to be: a search that goes on would
        find others every time."""
        if not (entries := [_unjudged(entry) for entry in self.entries()]):
            return []
        best = choose(entries, self.target)
        others = sorted((one for one in entries if one.on_front), key=lambda one: self.target.missing(one.figures))
        return [best, *(one for one in others if one.fidelity == 1 and one.key != best.key)][:_FINALISTS]

    def _judged(self, name: str, artifact: str, original: ServedFigures | None) -> Judged:
        if (known := self.journal.judged.get(artifact)) is not None:
            return known
        if (now_s := self.clock()) >= self.deadline_s:
            raise OutOfTime
        self.say(f"judging {name}", self._spent(now_s))
        held_out, served = self.study.judge(self.folder / artifact if artifact else None)
        if served is not None and original is not None:
            served = served.model_copy(update={"speedup": served.texts_per_s / original.texts_per_s})
        judged = Judged(artifact=artifact, held_out=held_out, served=served)
        self.journal.add(judged)
        return judged


def search(
    study: Study,
    target: Target,
    folder: Path,
    *,
    budget_s: float,
    say: Progress = lambda _what, _share: None,
    clock: Callable[[], float] = time.monotonic,
) -> Front:
    """Search until everything promising was tried, the budget is spent or Ctrl-C is pressed. Never without a result.

    What was tried is in the folder's journal. Calling it again goes on from there, with a budget of its own.

    Args:
        study: the model, and what can be done with it.
        target: what shall be reached.
        folder: where journal, artifacts and the front are kept.
        budget_s: seconds that it may take; the trial under way is given up when they are over.
        say: is told what is being done.
        clock: seconds of whatever origin.

    Returns:
        The front as it stands, which is in the folder, too. `ended` says how it came to an end.

    Raises:
        CompressionError: the folder holds a search of another model, data, seed or node.
    """
    started_s = clock()
    journal = Journal(folder, study.question)
    run = _Search(study, target, folder, started_s + budget_s, clock, say, started_s, journal)
    front = run.front(run.run())
    front.write(folder)
    if front.ended == "complete":
        _tidy(folder, front)
    return front


def _tidy(folder: Path, front: Front) -> None:
    """Remove what no entry speaks of any more: candidates as they were before they were tried for longer."""
    kept = {folder / entry.artifact for entry in front.entries}
    for trial in (folder / TRIALS).iterdir() if (folder / TRIALS).is_dir() else ():
        if trial not in kept:
            shutil.rmtree(trial, ignore_errors=True)


def explain_miss(front: Front) -> GateError | None:
    """The error that stands for a target that was not reached: each condition, and by how much; None if it was."""
    if front.met:
        return None
    if not front.chosen:
        reasons = "; ".join(f"{failed.name}: {failed.reason}" for failed in front.failed) or "nothing could be tried"
        return GateError(f"no candidate was measured in the time given ({reasons})")
    entry = front.entry(front.chosen)
    return GateError(f"the target {front.target} is not met; nearest is {entry.name!r}: {'; '.join(front.shortfalls)}")


def _unjudged(entry: Entry) -> Entry:
    return entry.model_copy(update={"held_out": {}, "served": None})


def _entry(tried: Tried, judged: Judged | None) -> Entry:
    return Entry(
        key=tried.key,
        name=tried.name,
        recipe=tried.recipe,
        fidelity=tried.fidelity,
        figures=tried.figures,
        uses=tried.uses,
        seconds=tried.seconds,
        artifact=tried.artifact,
        held_out={} if judged is None else judged.held_out,
        served=None if judged is None else judged.served,
    )
