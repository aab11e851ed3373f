"""`headrace bench generate`, the peers' part: our engine, llama.cpp and transformers, in turn, each in its process.

Every figure of a peer has one of ours right before it, on the same workload, and the ratio is that of the pair.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_engine import engine_contestant, load_engine
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Say, Subject
from headrace_cluster.bench.generate_workload import Workload, mixed_workload, windows

__all__ = ["measure_peers"]

_ENGINE: Final = "ours"
_PROGRAMS: Final = Path(__file__).parent / "peers"


@dataclass(slots=True)
class _Peer:
    """A way to do the same, and what came out of it beside ours."""

    name: str
    contestant: Contestant
    do: str = "generate"
    given: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    pairs: list[tuple[float, float]] = field(default_factory=list)
    single_pairs: list[tuple[float, float]] = field(default_factory=list)
    perplexity: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return median(theirs for _, theirs in self.pairs)

    @property
    def ratio(self) -> float:
        """Of ours to theirs."""
        return median(ours / theirs for ours, theirs in self.pairs)

    @property
    def single_tokens_per_s(self) -> float:
        return median(theirs for _, theirs in self.single_pairs)

    @property
    def single_ratio(self) -> float:
        return median(ours / theirs for ours, theirs in self.single_pairs)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens_per_s": self.tokens_per_s,
            "ratio": self.ratio,
            "single_tokens_per_s": self.single_tokens_per_s,
            "single_ratio": self.single_ratio,
            "perplexity": self.perplexity,
            "settings": self.settings,
        }


def measure_peers(subject: Subject, plan: GeneratePlan, scratch: Path, report: GenerateReport, say: Say) -> None:
    """Fill in what our engine does in process, and what the peers do that there are.

    Args:
        subject: the model.
        plan: how much.
        scratch: a folder for a file of llama.cpp's.
        report: is filled in.
        say: is told what is being done.
    """
    with ExitStack() as running:
        bench = _Bench(subject, plan, report, say, running)
        bench.run(scratch)


class _Bench:
    def __init__(
        self, subject: Subject, plan: GeneratePlan, report: GenerateReport, say: Say, running: ExitStack
    ) -> None:
        self._subject = subject
        self._plan = plan
        self._report = report
        self._say = say
        self._running = running
        self._numbers = count(1)
        self._rates: list[float] = []
        self._single_rates: list[float] = []

    def run(self, scratch: Path) -> None:
        self._say("loading our engine")
        self._engine = self._running.enter_context(engine_contestant())
        loaded = self._load()
        self._report.kv_cache_bytes = loaded["kv_cache_bytes"]
        files = list(self._llama_cpp(scratch))
        library = self._transformers()
        for turn in range(self._plan.rounds):
            for peer in [*files, *library]:
                self._say(f"round {turn + 1} of {self._plan.rounds}: {peer.name}")
                self._pair(peer)
        if not files and not library:
            self._pair(None)
        self._judge(files)
        self._tell(files, library)

    def _load(self) -> dict[str, Any]:
        return load_engine(self._engine, _ENGINE, self._subject, self._plan)

    def _workload(self) -> Workload:
        whole = mixed_workload(self._subject.tokenizer, self._plan.prompts, number=next(self._numbers))
        return whole.first(self._plan.prompts, longest_answer=self._plan.longest_answer)

    def _alone(self) -> Workload:
        """One prompt of 57 tokens."""
        workload = self._workload()
        return Workload(workload.prompts[:1], workload.ids[:1], [self._plan.single_tokens])

    def _llama_cpp(self, scratch: Path) -> Iterator[_Peer]:
        """One for each file: the model's own, and one in Q8_0."""
        python = self._plan.peers and self._plan.peers.absolute() / "llama_cpp" / "bin" / "python"
        if not python or not python.exists() or not self._subject.path.endswith(".gguf"):
            return
        program = self._running.enter_context(Contestant([python, _PROGRAMS / "llama_cpp_peer.py"]))
        eight_bits = scratch / "model-Q8_0.gguf"
        self._say("llama.cpp: writing Q8_0")
        program.ask("quantize", source=self._subject.path, target=str(eight_bits))
        for name, file in (("as it comes", self._subject.path), ("Q8_0", str(eight_bits))):
            peer = _Peer(f"llama.cpp, {name}", program, given={"file": file})
            self._choose(peer)
            yield peer

    def _choose(self, peer: _Peer) -> None:
        if not self._plan.choice_tokens:
            return
        self._say(f"{peer.name}: trying its settings")
        part = self._workload().first(self._plan.choice_prompts, longest_answer=self._plan.choice_tokens)
        alone = self._alone().first(1, longest_answer=self._plan.choice_tokens)
        for workload, slots in ((part, self._plan.slots), (alone, 1)):
            peer.settings[f"{slots} slots"] = peer.contestant.ask(
                "choose", **peer.given, **_asked(workload), slots=slots
            )

    def _transformers(self) -> list[_Peer]:
        if self._plan.peers is None:
            return []
        program = self._running.enter_context(Contestant([sys.executable, _PROGRAMS / "transformers_peer.py"]))
        program.ask("load", folder=str(self._subject.source.folder), threads=self._subject.threads)
        return [
            _Peer("transformers, generate", program),
            _Peer("transformers, generate_batch", program, do="generate_batch"),
        ]

    def _pair(self, peer: _Peer | None) -> None:
        """All prompts by us and by the peer, then one of them alone, longer."""
        plan, workload = self._plan, self._workload()
        self._report.new_tokens = workload.tokens
        self._rates.append(self._ours(workload))
        if peer is not None:
            peer.pairs.append((self._rates[-1], self._theirs(peer, workload, plan.slots)))
        alone = self._alone()
        self._single_rates.append(self._ours(alone))
        if peer is not None and peer.given:
            peer.single_pairs.append((self._single_rates[-1], self._theirs(peer, alone, 1)))

    def _ours(self, workload: Workload) -> float:
        answer = self._engine.ask("generate", name=_ENGINE, prompts=workload.prompts, new_tokens=workload.new_tokens)
        self._report.kv_cache_peak_bytes = max(self._report.kv_cache_peak_bytes, answer["kv_cache_peak_bytes"])
        return _rate(answer, workload)

    def _theirs(self, peer: _Peer, workload: Workload, slots: int) -> float:
        return _rate(peer.contestant.ask(peer.do, **peer.given, **_asked(workload), slots=slots), workload)

    def _judge(self, files: list[_Peer]) -> None:
        """The same tokens, in the same windows, by everybody who says what he holds for likely."""
        judged = windows(self._subject.tokenizer, tokens=self._plan.judged_tokens, window=self._plan.window)
        self._say("perplexities")
        answer = self._engine.ask("losses", name=_ENGINE, windows=judged)
        self._report.perplexity, self._report.judged_tokens = _perplexity(answer), answer["tokens"]
        for peer in files:
            peer.perplexity = _perplexity(peer.contestant.ask("losses", **peer.given, windows=judged))

    def _tell(self, files: list[_Peer], library: list[_Peer]) -> None:
        report = self._report
        report.tokens_per_s = median(self._rates)
        report.tokens_per_s_spread = {"slowest": min(self._rates), "fastest": max(self._rates)}
        report.single_tokens_per_s = median(self._single_rates)
        if files:
            report.llama_cpp_files = [peer.to_json() for peer in files]
            best, alone = (
                max(files, key=lambda one: one.tokens_per_s),
                max(files, key=lambda one: one.single_tokens_per_s),
            )
            report.llama_cpp_tokens_per_s, report.ratio_to_llama_cpp = best.tokens_per_s, best.ratio
            report.single_llama_cpp_tokens_per_s = alone.single_tokens_per_s
            report.single_ratio_to_llama_cpp = alone.single_ratio
        if library:
            padded, batched = library
            report.transformers_tokens_per_s, report.ratio_to_transformers = padded.tokens_per_s, padded.ratio
            report.transformers_generate_batch_tokens_per_s = batched.tokens_per_s
            report.ratio_to_transformers_generate_batch = batched.ratio


def _asked(workload: Workload) -> dict[str, Any]:
    """What peers are asked with: tokens, since each would make others of the text."""
    return {"prompts": workload.ids, "new_tokens": workload.new_tokens}


def _rate(answer: dict[str, Any], workload: Workload) -> float:
    """New tokens a second.

    Raises:
        RuntimeError: not every token that was asked for was there.
    """
    if answer["tokens"] != workload.tokens:
        raise RuntimeError(f"{answer['tokens']} new tokens instead of {workload.tokens}")
    return float(answer["tokens"] / answer["seconds"])


def _perplexity(answer: dict[str, Any]) -> float:
    return math.exp(answer["loss"] / answer["tokens"])
