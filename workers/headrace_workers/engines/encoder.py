"""The encoder engine: any Hugging Face encoder, packed batches, int8 by default.

`prepare` validates and tokenizes; `run` cuts a batch into passes that suit the caches, runs each over all its tokens at
once, and turns rows into answers. In int8 a job's answer is the same bits alone and in any batch: every step either
works token by token or keeps to the tokens of one text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailureCode, ModelLoadError
from headrace_workers import node
from headrace_workers.artifacts.artifact import Task
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared
from headrace_workers.engines.tasks import (
    EmbeddingTask,
    Params,
    SequenceClassificationTask,
    TaskHead,
    Text,
    TokenClassificationTask,
)
from headrace_workers.kernels.selection import Policy
from headrace_workers.models.fetching import Fetch
from headrace_workers.models.loading import LoadedModel, load_model, max_tokens_of
from headrace_workers.models.pooling import read_pooling
from headrace_workers.models.preparing import Device, Precision, prepare_model
from headrace_workers.models.source import ModelSource, find_source
from headrace_workers.models.tokenizer import Tokenized, load_tokenizer
from headrace_workers.models.variants import fitting_variant
from headrace_workers.telemetry.cold_start import phase

__all__ = ["MAX_TOKENS_PER_PASS", "EncoderEngine", "Overlong", "Precision"]

log = logging.getLogger(__name__)

Overlong = Literal["error", "truncate"]

MAX_TOKENS_PER_PASS: Final = 1024
"""Tokens that go through the model together on a CPU, unless one text has more: what suits its caches."""

_MAX_TOKENS_PER_GPU_PASS: Final = 65_536
"""The same on a GPU, whose units want filling."""

_EXAMPLE: Final = "A headrace is the channel that leads water to the mill wheel."
_PROBES: Final = (_EXAMPLE, "Short.", "One text more, neither long nor short; the others differ in length.")
_LONG_PROBE_TOKENS: Final = 160


class EncoderEngine:
    """Runs an encoder. Construct it in the process, and use `run` from one thread at a time.

    Args:
        model: an artifact, a Hugging Face folder, or a hub id.
        task: what to use it for; None: what its files say.
        precision: `int8` (quantized at load if the model is not), `fp32`, `bf16` where the processor has it, or
            `fp16` on a GPU, which also computes with int8 weights in fp16.
        variant: which variant of an artifact; None: the first that is made for this node.
        max_tokens: refuse or cut longer texts, also where the model could take more; None: the model's own limit.
        max_tokens_per_pass: tokens that go through the model together; None: a good number for the device.
        overlong: what happens to longer texts unless their job says otherwise.
        kernels: how kernels are chosen: by measurement, or `int8` or `fp32` without one.
        threads: compute threads; None: as the process is set up already.
        device: `cpu`, or `cuda` for the GPU that this process sees.

    Raises:
        ModelLoadError: the model cannot be loaded, or does not do the task.
        ArtifactError: the artifact is broken.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        task: Task | None = None,
        precision: Precision = "int8",
        variant: str | None = None,
        max_tokens: int | None = None,
        max_tokens_per_pass: int | None = None,
        overlong: Overlong = "error",
        kernels: Policy = "measured",
        threads: int | None = None,
        device: Device = "cpu",
    ) -> None:
        started_s = time.perf_counter()
        if threads is not None:
            node.prepare_process(threads)
        with phase("fetch"):
            source = find_source(model)
        if variant is None and source.artifact is not None:
            variant = fitting_variant(source.artifact, device=device, flags=node.capabilities().flags)
        with phase("load"):
            loaded = load_model(source, _task_of(source, task), variant=variant)
        self._truncate = overlong == "truncate"
        fitting = MAX_TOKENS_PER_PASS if device == "cpu" else _MAX_TOKENS_PER_GPU_PASS
        self._max_tokens_per_pass = max_tokens_per_pass or fitting
        self._tokenizer = load_tokenizer(source, _limit(source, loaded, max_tokens))
        self._head = _head_of(source, loaded)
        with phase("pack"):
            self._runner, details = prepare_model(
                loaded, self._probes(), precision=precision, kernels=kernels, device=device
            )
        node.give_memory_back()
        self.info = EngineInfo(
            variant=variant if source.artifact is not None and variant else precision,
            task=loaded.task,
            device=device,
            load_s=time.perf_counter() - started_s,
            details={**details, **self._head.describe(), "max_tokens": self._tokenizer.max_tokens},
        )
        log.info("%s: %s in %s, ready in %.1f s", source.name, loaded.task, self.info.variant, self.info.load_s)
        log.debug("%s", self.info.details)

    # -- preparing --------------------------------------------------------------------------------------

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Validate and tokenize. May be called from any thread, also while `run` runs."""
        checked = [self._checked(value, params) for value, params in requests]
        texts = [text for text in checked if isinstance(text, str)]
        tokenized = iter(self._tokenizer(texts, offsets=self._head.wants_offsets) if texts else [])
        prepared: list[Prepared | ItemError] = []
        for (_, given), text in zip(requests, checked, strict=True):
            if isinstance(text, ItemError):
                prepared.append(text)
            else:
                prepared.append(self._prepared(text, self._head.read_params(given), next(tokenized)))
        return prepared

    def _checked(self, value: Any, params: dict[str, Any]) -> str | ItemError:
        """The text of a job, if it is one and its parameters are right."""
        try:
            self._head.read_params(params)
            return _checked_text(value)
        except ItemError as error:
            return error

    def _prepared(self, text: str, params: Params, tokens: Tokenized) -> Prepared | ItemError:
        limit = self._tokenizer.max_tokens
        if len(tokens.ids) > limit:
            if not (self._truncate if params.truncate is None else params.truncate):
                return ItemError(
                    FailureCode.INPUT_TOO_LONG,
                    f"the text has {len(tokens.ids):,} tokens; the model takes {limit:,}",
                    hint='shorten it, or submit it with params={"truncate": true}',
                )
            tokens = self._tokenizer.cut(text, offsets=self._head.wants_offsets)
        return Prepared(len(tokens.ids), Text(text, params, tokens))

    # -- running ----------------------------------------------------------------------------------------

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Answer prepared jobs, in order; an answer does not depend on the others."""
        answers: list[Any] = []
        before: tuple[list[Text], Fetch] | None = None
        for texts in self._passes(items):
            started = texts, self._start(texts)
            answers += self._answers(before)  # meanwhile a GPU runs the pass that was just started
            before = started
        return answers + self._answers(before)

    def _passes(self, items: Sequence[Prepared]) -> Iterator[list[Text]]:
        """The items cut into passes of at most `max_tokens_per_pass`; a longer text has a pass of its own."""
        texts: list[Text] = []
        tokens = 0
        for item in items:
            if texts and tokens + item.tokens > self._max_tokens_per_pass:
                yield texts
                texts, tokens = [], 0
            texts.append(item.data)
            tokens += item.tokens
        if texts:
            yield texts

    def _start(self, texts: list[Text]) -> Fetch:
        rows, counts = self._runner([text.tokens.ids for text in texts])
        return Fetch(rows, counts, self._head.pooled_by)

    def _answers(self, started: tuple[list[Text], Fetch] | None) -> list[Any]:
        if started is None:
            return []
        texts, fetch = started
        return self._head.answers(texts, *fetch.wait())

    # -- about ------------------------------------------------------------------------------------------

    def example(self) -> tuple[Any, dict[str, Any]]:
        """A sentence."""
        return _EXAMPLE, {}

    def _probes(self) -> list[NDArray[np.int64]]:
        """Token ids to check the model with: short texts, and one as long as such a check should take."""
        probes = [self._tokenizer.cut(text).ids for text in _PROBES]
        long = self._tokenizer.cut(" ".join(_PROBES * 20)).ids
        return [*probes, long[:_LONG_PROBE_TOKENS]]


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ItemError(FailureCode.INVALID_INPUT, f"the input is {_kind(value)}, not text", hint="submit a string")
    if not value.strip():
        raise ItemError(FailureCode.INVALID_INPUT, "the text is empty", hint="submit at least one word")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ItemError(FailureCode.INVALID_INPUT, "the text holds half a surrogate pair: not Unicode") from None
    return value


def _kind(value: Any) -> str:
    return {list: "a list", dict: "a map", bytes: "bytes", type(None): "missing"}.get(type(value), "a number")


def _task_of(source: ModelSource, asked: Task | None) -> Task:
    task = source.task(asked)
    if task in ("causal_lm", "custom"):
        raise ModelLoadError(
            f"{source.name} is made for {task}, which is no encoder's; task embedding takes its states"
        )
    return task


def _limit(source: ModelSource, model: LoadedModel, asked: int | None) -> int:
    if asked is None:
        return max_tokens_of(source, model)
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(asked, positions - model.first_position) if isinstance(positions, int) else asked


def _head_of(source: ModelSource, model: LoadedModel) -> TaskHead:
    if model.task == "embedding":
        return EmbeddingTask(read_pooling(source))
    labels = [model.config.id2label[at] for at in range(model.config.num_labels)]
    if model.task == "token_classification":
        return TokenClassificationTask(labels)
    return SequenceClassificationTask(labels, model.config.problem_type)
