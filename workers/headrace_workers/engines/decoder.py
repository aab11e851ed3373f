"""The decoder engine: continuous batching over one language model.

Every `step` is one pass through the model, for all sequences that run: the next token of those that are decoding, and a
chunk of the prompts of those that are not yet. Sequences join and leave between steps. What is computed when is the
`StepScheduler`'s to say, what is drawn the `Sampler`'s, how rows become logits the runner's; this class has them take
turns, and nothing in here waits for anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from tokenizers import Tokenizer
from torch import Tensor

from headrace.errors import FailureCode, ModelLoadError
from headrace_workers import node
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared
from headrace_workers.generation.constraint import ConstraintCompiler
from headrace_workers.generation.draft import Draft
from headrace_workers.generation.generation import Choice, FinishReason, Generation, GenerationRequest
from headrace_workers.generation.loading import DecoderPrecision, kv_pages, load_decoder
from headrace_workers.generation.pages import PagePool
from headrace_workers.generation.params import read_generation_params
from headrace_workers.generation.prompts import PromptReader, end_tokens
from headrace_workers.generation.runner import PAGE_TOKENS
from headrace_workers.generation.sampling import Draw, Drawn, Sampler
from headrace_workers.generation.sequence import Sequence as TokenSequence
from headrace_workers.generation.speculation import DraftPolicy
from headrace_workers.generation.step_arrays import step_of
from headrace_workers.generation.step_scheduler import Planned, StepScheduler
from headrace_workers.generation.text import TextAssembler, TokenSpelling
from headrace_workers.kernels.selection import Policy
from headrace_workers.models.preparing import Device
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import serialized_tokenizer
from headrace_workers.models.variants import fitting_variant
from headrace_workers.telemetry.cold_start import phase

__all__ = ["DecoderEngine", "Event"]

log = logging.getLogger(__name__)

_EXAMPLE: Final = ("The mill stands by the river, and", {"max_tokens": 8, "temperature": 0.0})


class Event(NamedTuple):
    """Something happened to a generation."""

    generation: Generation
    chunk: dict[str, Any] | None
    """A token of one of its choices, as it is delivered; None if it failed."""
    ended: bool


class DecoderEngine:
    """Generates text. Construct it in the process; `step`, `start` and `cancel` belong to one thread.

    Args:
        model: an artifact, a Hugging Face folder, a hub id, or a GGUF file.
        precision: `int8` or `int4` weights (quantized at load if the model is not), `fp32`, `bf16`, or on a GPU `fp16`.
        variant: which variant of an artifact; None: the first that is made for this node.
        max_tokens: the longest sequence, prompt and answer together; None: the model's own limit.
        slots: sequences that run together at most.
        kv_cache_bytes: memory for keys and values at most; None: what the slots may need, a quarter of memory at most.
        prefill_rows: rows of one step at most: a long prompt goes through in chunks of what is left beside decoding.
        prefix_cache: whether prompts that begin alike are computed once.
        overlong: what happens to prompts that are too long, unless their job says otherwise.
        kernels: how kernels are chosen: by measurement, or `int8` or `fp32` without one.
        draft: a smaller model of the same vocabulary that proposes tokens, used only where that is faster; empty: none.
        device: `cpu`, or `cuda` for the GPU that this process sees.

    Raises:
        ModelLoadError: the model cannot be loaded, or its keys and values do not fit.
        ArtifactError: the artifact is broken.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        precision: DecoderPrecision = "int8",
        variant: str | None = None,
        max_tokens: int | None = None,
        slots: int = 32,
        kv_cache_bytes: int | None = None,
        prefill_rows: int = 112,
        prefix_cache: bool = True,
        overlong: Literal["error", "truncate"] = "error",
        kernels: Policy = "measured",
        draft: str = "",
        device: Device = "cpu",
    ) -> None:
        started_s = time.perf_counter()
        with phase("fetch"):
            source = find_source(model)
        if variant is None and source.artifact is not None:
            variant = fitting_variant(source.artifact, device=device, flags=node.capabilities().flags)
        with phase("load"):
            self._runner, details = load_decoder(
                source, precision=precision, variant=variant, kernels=kernels, device=device, max_tokens=max_tokens
            )
        info = self._runner.info
        pages = kv_pages(info, kv_cache_bytes, slots)
        self._runner.allocate(pages)
        self.pool = PagePool(pages, prefix_cache=prefix_cache)
        self.scheduler = StepScheduler(
            self.pool, slots=slots, max_rows=max(prefill_rows, slots + PAGE_TOKENS), max_positions=info.max_positions
        )
        self._prompts = PromptReader(source, info.max_positions)
        self._truncate = overlong == "truncate"
        self._spelling = TokenSpelling(self._prompts.tokenizer)
        self._end_tokens = end_tokens(source)
        self._sampler = Sampler(info.vocabulary, self._spelling)
        self._constraints = ConstraintCompiler(self._prompts.tokenizer, info.vocabulary, self._end_tokens)
        self._draft = self._load_draft(draft, precision, device) if draft else None
        node.give_memory_back()
        self.info = EngineInfo(
            variant=variant if source.artifact is not None and variant else precision,
            task="causal_lm",
            device=device,
            load_s=time.perf_counter() - started_s,
            details={
                **details,
                "slots": slots,
                "kv_cache_bytes": pages * info.page_bytes,
                "max_tokens": info.max_positions,
                "batch_invariant": info.exact,
            },
        )
        log.info("%s: %s, ready in %.1f s", source.name, self.info.variant, self.info.load_s)

    def _load_draft(self, model: str, precision: DecoderPrecision, device: Device) -> Draft:
        source = find_source(model)
        if Tokenizer.from_str(serialized_tokenizer(source).decode()).get_vocab() != self._prompts.tokenizer.get_vocab():
            raise ModelLoadError(f"the draft {source.name} has other tokens than the model: it could never guess right")
        runner, _ = load_decoder(source, precision=precision, device=device)
        return Draft(runner, self.pool.pages, self._sampler, DraftPolicy())

    @property
    def guesses(self) -> tuple[int, int]:
        """Tokens that the draft has guessed so far, and how many of them were kept."""
        return (0, 0) if self._draft is None else (self._draft.guessed, self._draft.right)

    # -- preparing, on any thread -------------------------------------------------------------------------

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Validate and tokenize. May be called from any thread, also while a step runs."""
        return [self._prepared(value, params) for value, params in requests]

    def _prepared(self, value: Any, given: dict[str, Any]) -> Prepared | ItemError:
        try:
            params = read_generation_params(given)
            if params.truncate is None and self._truncate:
                params = params.model_copy(update={"truncate": True})
            prompt, max_new_tokens = self._prompts.read(value, params)
            constraint = self._constraints.compile(params.response_format)
        except ItemError as error:
            return error
        return Prepared(len(prompt), GenerationRequest(prompt, params, max_new_tokens, constraint))

    # -- on the decode thread -------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(len(self.scheduler))

    def start(self, item: Prepared, *, job_id: str, delivered: Sequence[Mapping[str, Any]] = ()) -> Generation:
        """Have a job take part in the steps from now on; it may have `ended` already by what was delivered before.

        Args:
            item: from `prepare`.
            job_id: the producer's name for it, which seeds it unless it names a seed.
            delivered: its chunks so far, in order.

        Raises:
            ItemError: what was delivered is not this job's, or it can never fit the cache.
        """
        request: GenerationRequest = item.data
        generation = Generation(job_id, request)
        generation.choices = [self._choice(generation, index) for index in range(request.n)]
        generation.resume(delivered)
        try:
            for choice in generation.choices:
                if choice.finish_reason is None:
                    self.scheduler.add(choice.sequence)
        except ValueError as error:
            self._leave(generation)
            raise ItemError(
                FailureCode.INPUT_TOO_LONG, str(error), hint="shorten it, or ask for fewer tokens"
            ) from None
        return generation

    def _choice(self, generation: Generation, index: int) -> Choice:
        request = generation.request
        return Choice(
            generation,
            index,
            draw=Draw(request.params, job_id=generation.job_id, choice=index, constraint=request.constraint),
            text=TextAssembler(self._spelling, request.params.stop),
            end_tokens=self._end_tokens,
        )

    def cancel(self, generation: Generation, reason: FinishReason = "cancelled") -> None:
        """End a generation now, and free its memory; its `partial` says how far it got."""
        generation.give_up(reason)
        self._leave(generation)

    def _leave(self, generation: Generation) -> None:
        for choice in generation.choices:
            self._remove(choice.sequence)

    def _remove(self, sequence: TokenSequence) -> None:
        self.scheduler.remove(sequence)
        if self._draft is not None:
            self._draft.forget(sequence)

    def step(self) -> list[Event]:
        """One pass: for every sequence that runs a token, or several where they were guessed. Empty if there is nothing
        to do.

        An exception of the model fails the jobs of the pass, and no others.
        """
        drafts = self._draft.policy.drafts(self.scheduler.running) if self._draft is not None else 0
        plan = self.scheduler.plan(drafts)
        if not plan:
            return []
        try:
            return self._plain_step(plan) if self._draft is None else self._timed_step(plan, self._draft)
        except Exception as error:
            log.exception("a step of %d sequences failed", len(plan))
            failed = ItemError(FailureCode.ENGINE_FAILED, f"{type(error).__name__}: {error}", retryable=True)
            return self._fail({planned.sequence.key.generation: None for planned in plan}, failed)

    def _plain_step(self, plan: Sequence[Planned]) -> list[Event]:
        logits = self._runner.run(step_of(plan))
        self.scheduler.computed(plan)
        choices: list[Choice] = [planned.sequence.key for planned in plan if planned.draws]
        drawn = self._sampler.draw(logits, [choice.draw for choice in choices], self._runner.best) if choices else []
        return [event for choice, token in zip(choices, drawn, strict=True) for event in self._take(choice, token)]

    def _take(self, choice: Choice, drawn: Drawn | ItemError) -> list[Event]:
        generation = choice.generation
        if generation.ended:  # by another choice's failure, within this step
            return []
        if isinstance(drawn, ItemError):
            return self._fail([generation], drawn)
        chunk = choice.take(drawn)
        if choice.finish_reason is not None:
            self._remove(choice.sequence)
        return [Event(generation, chunk, generation.ended)]

    # -- with a draft ---------------------------------------------------------------------------------------

    def _timed_step(self, plan: list[Planned], draft: Draft) -> list[Event]:
        """A step with guesses, or one that it is compared with."""
        began_s = time.perf_counter()
        guesses = self._guesses(plan, draft)
        guessed_s = time.perf_counter()
        if not any(guesses):
            events = self._plain_step(plan)
            if all(planned.count == 1 for planned in plan):
                draft.policy.note_plain(len(plan), step_s=time.perf_counter() - guessed_s)
            return events
        logits = self._runner.run(step_of(plan, guesses))
        right, events = self._verified(plan, guesses, logits)
        self.scheduler.computed(plan, right)
        for planned, kept in zip(plan, right, strict=True):
            draft.settle(planned.sequence, planned.start + 1 + kept)
            draft.guessed += planned.drafts
            draft.right += kept
            if planned.sequence.key.finish_reason is not None:
                self._remove(planned.sequence)
        if all(planned.count == 1 + planned.drafts for planned in plan):
            draft.policy.note_drafted(
                len(plan),
                drafts=max(planned.drafts for planned in plan),
                draft_s=guessed_s - began_s,
                verify_s=time.perf_counter() - guessed_s,
                accepted_of_each=right,
            )
        return events

    def _guesses(self, plan: list[Planned], draft: Draft) -> list[list[int]]:
        """The draft's guesses for each of the plan, which has rows for no more than there are afterwards."""
        choices: list[Choice] = [planned.sequence.key for planned in plan]
        counts = [
            planned.drafts if choice.draw.plain and not choice.draw.params.logprobs else 0
            for planned, choice in zip(plan, choices, strict=True)
        ]
        if not any(planned.drafts for planned in plan):
            return [[] for _ in plan]
        guesses = draft.guess([planned.sequence for planned in plan], [choice.draw for choice in choices], counts)
        for planned, guessed in zip(plan, guesses, strict=True):
            planned.count -= planned.drafts - len(guessed)
            planned.drafts = len(guessed)
        return guesses

    def _verified(
        self, plan: Sequence[Planned], guesses: Sequence[list[int]], logits: Tensor
    ) -> tuple[list[int], list[Event]]:
        """Draw row by row while guesses are right; how many were, for each of the plan, and what it brought."""
        right, events, row = [], list[Event](), 0
        for planned, guessed in zip(plan, guesses, strict=True):
            kept = 0
            if planned.draws:
                kept, some = self._drawn_behind(planned.sequence.key, guessed, logits[row : row + 1 + len(guessed)])
                events += some
                row += 1 + len(guessed)
            right.append(kept)
        return right, events

    def _drawn_behind(self, choice: Choice, guessed: list[int], logits: Tensor) -> tuple[int, list[Event]]:
        events: list[Event] = []
        for kept in range(len(guessed) + 1):
            [drawn] = self._sampler.draw(logits[kept : kept + 1], [choice.draw])
            if choice.generation.ended:
                return kept, events
            if isinstance(drawn, ItemError):
                return kept, events + self._fail([choice.generation], drawn)
            chunk = choice.take(drawn)
            events.append(Event(choice.generation, chunk, choice.generation.ended))
            if choice.finish_reason is not None or kept == len(guessed) or drawn.token != guessed[kept]:
                return kept, events
        raise AssertionError("the last row has no guess behind it")

    def _fail(self, generations: Any, error: ItemError) -> list[Event]:
        events = []
        for generation in generations:
            generation.fail(error)
            self._leave(generation)
            events.append(Event(generation, None, True))
        return events

    # -- about ----------------------------------------------------------------------------------------------

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Answer prepared jobs to their ends, in order: how `headrace check` and a warm-up use the engine."""
        generations = [self.start(item, job_id=str(number)) for number, item in enumerate(items)]
        while self.busy:
            self.step()
        return [generation.error or generation.output() for generation in generations]

    def example(self) -> tuple[Any, dict[str, Any]]:
        """The beginning of a sentence."""
        text, params = _EXAMPLE
        return text, dict(params)
