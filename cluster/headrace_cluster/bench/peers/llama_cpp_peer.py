"""llama.cpp through its batch interface: slots refilled as sequences end, greedy, settings tried and the best kept.

A step takes the last token of every running sequence, and behind them as much of new prompts as the batch has room for,
as llama.cpp's own server does. Logits are read where llama.cpp leaves them; a token is their maximum.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from dataclasses import dataclass, field

import llama_cpp
import numpy as np
from json_lines import answer_lines

CORES = len(os.sched_getaffinity(0))
BATCH = 2048
CACHE_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
USUAL = {"unified": True, "threads": CORES, "flash": True, "cache": "f16", "ubatch": 512, "repack": True}
OTHERWISE = {"unified": False, "flash": False, "repack": False, "cache": "q8_0", "ubatch": 128, "threads": 1}
"""What is tried instead, one after the other; what is faster stays."""


@dataclass
class Sequence:
    prompt: list[int]
    wanted: int
    slot: int
    computed: int = 0
    drawn: list[int] = field(default_factory=list)


class Rows:
    """A llama_batch, and which sequences its logits belong to."""

    def __init__(self, size: int) -> None:
        self.batch = llama_cpp.llama_batch_init(size, 0, 1)
        self.size = size
        self.clear()

    def clear(self) -> None:
        self.batch.n_tokens = 0
        self.drawing: list[Sequence] = []

    def add(self, token: int, position: int, slot: int, *, logits: bool) -> None:
        at, batch = self.batch.n_tokens, self.batch
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, logits
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
        batch.n_tokens = at + 1

    @property
    def room(self) -> int:
        return self.size - self.batch.n_tokens


class Decoder:
    """One model with one choice of settings."""

    def __init__(self, file: str, slots: int, positions: int, settings: dict) -> None:
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = settings["repack"]
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), loading)
        given = llama_cpp.llama_context_default_params()
        given.n_seq_max, given.n_ctx = slots, slots * positions
        given.n_batch, given.n_ubatch = BATCH, settings["ubatch"]
        given.n_threads = given.n_threads_batch = settings["threads"]
        given.flash_attn_type = int(settings["flash"])
        given.type_k = CACHE_TYPES[settings["cache"]]
        given.type_v = given.type_k if settings["flash"] else llama_cpp.GGML_TYPE_F16  # llama.cpp wants it so
        given.kv_unified = settings["unified"]
        self.context = llama_cpp.llama_init_from_model(self.model, given)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {settings}")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.slots = slots
        self.rows = Rows(BATCH)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.rows.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def logits(self, rows: int) -> np.ndarray:
        failed = llama_cpp.llama_decode(self.context, self.rows.batch)
        if failed:
            raise RuntimeError(f"llama_decode: {failed}")
        found = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (rows, self.vocabulary))

    def generate(self, prompts: list[list[int]], new_tokens: list[int]) -> list[list[int]]:
        waiting = deque(range(len(prompts)))
        free, running = list(range(self.slots)), []
        answers: list[list[int]] = [[] for _ in prompts]
        llama_cpp.llama_memory_clear(self.memory, True)
        while waiting or running:
            while free and waiting:
                at = waiting.popleft()
                running.append(Sequence(prompts[at], new_tokens[at], free.pop(), drawn=answers[at]))
            self.step(running)
            for ended in [one for one in running if len(one.drawn) == one.wanted]:
                running.remove(ended)
                free.append(ended.slot)
                llama_cpp.llama_memory_seq_rm(self.memory, ended.slot, -1, -1)
        return answers

    def step(self, running: list[Sequence]) -> None:
        rows = self.rows
        rows.clear()
        for one in running:
            if one.drawn:
                rows.add(one.drawn[-1], one.computed, one.slot, logits=True)
                one.computed += 1
                rows.drawing.append(one)
        for one in running:
            end = min(len(one.prompt), one.computed + rows.room)
            if one.drawn or end <= one.computed:
                continue
            for position in range(one.computed, end):
                rows.add(one.prompt[position], position, one.slot, logits=position == len(one.prompt) - 1)
            one.computed = end
            if end == len(one.prompt):
                rows.drawing.append(one)
        logits = self.logits(len(rows.drawing)) if rows.drawing else self.no_logits()
        for one, token in zip(rows.drawing, logits.argmax(axis=1).tolist(), strict=True):
            one.drawn.append(token)

    def no_logits(self) -> np.ndarray:
        if llama_cpp.llama_decode(self.context, self.rows.batch):
            raise RuntimeError("llama_decode failed")
        return np.empty((0, 1))

    def loss(self, window: list[int]) -> float:
        """Of every token but the first."""
        llama_cpp.llama_memory_clear(self.memory, True)
        self.rows.clear()
        for position, token in enumerate(window):
            self.rows.add(token, position, 0, logits=True)
        logits = self.logits(len(window))[:-1].astype(np.float64)
        highest = logits.max(axis=1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        return float((total - logits[np.arange(len(window) - 1), window[1:]]).sum())


class Peer:
    """Settings that were chosen, for each file and number of slots, and the decoder that was used last."""

    def __init__(self) -> None:
        self.settings: dict[tuple[str, int], dict] = {}
        self.decoder: tuple[tuple, Decoder] | None = None

    def quantize(self, source: str, target: str) -> dict:
        """To Q8_0. What is in few bits is dequantised first: the values are those of the model in fp32."""
        given = llama_cpp.llama_model_quantize_default_params()
        given.ftype, given.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
        failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(given))
        if failed:
            raise RuntimeError(f"llama_model_quantize: {failed}")
        return {}

    def choose(self, file: str, prompts: list[list[int]], new_tokens: list[int], slots: int) -> dict:
        """Each in turn with the best so far, since the machine's own speed moves."""
        asked = (prompts, new_tokens, slots)
        best = dict(USUAL)
        for name, value in OTHERWISE.items():
            tried = best | {name: value}
            times_s = [(self.timed(file, best, *asked), self.timed(file, tried, *asked)) for _ in range(2)]
            if min(tried_s for _, tried_s in times_s) < min(best_s for best_s, _ in times_s):
                best = tried
        self.settings[file, slots] = best
        return best

    def timed(self, file: str, settings: dict, prompts: list, new_tokens: list, slots: int) -> float:
        decoder = self.prepared(file, settings, prompts, new_tokens, slots)
        decoder.generate(prompts[:2], [2, 2])
        started = time.perf_counter()
        decoder.generate(prompts, new_tokens)
        return time.perf_counter() - started

    def prepared(self, file: str, settings: dict, prompts: list, new_tokens: list, slots: int) -> Decoder:
        longest = max(len(prompt) + new for prompt, new in zip(prompts, new_tokens, strict=True))
        positions = -(-longest // 256) * 256
        key = (file, slots, positions, tuple(settings.values()))
        if self.decoder is None or self.decoder[0] != key:
            if self.decoder is not None:
                self.decoder[1].close()
            self.decoder = key, Decoder(file, slots, positions, settings)
        return self.decoder[1]

    def generate(self, file: str, prompts: list[list[int]], new_tokens: list[int], slots: int) -> dict:
        decoder = self.prepared(file, self.settings.get((file, slots), USUAL), prompts, new_tokens, slots)
        decoder.generate(prompts[:2], [2, 2])
        started = time.perf_counter()
        answers = decoder.generate(prompts, new_tokens)
        return {"seconds": time.perf_counter() - started, "tokens": sum(map(len, answers)), "answers": answers}

    def losses(self, file: str, windows: list[list[int]]) -> dict:
        decoder = self.prepared(file, USUAL, windows, [0] * len(windows), 1)
        return {"loss": sum(map(decoder.loss, windows)), "tokens": sum(len(window) - 1 for window in windows)}


@llama_cpp.llama_log_callback
def silent(_level: int, _text: bytes, _data: object) -> None:
    pass


if __name__ == "__main__":
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    peer = Peer()
    answer_lines({name: getattr(peer, name) for name in ("quantize", "choose", "generate", "losses")})
