"""The demo's second half: a language model answers several prompts at once, and all of them are watched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from headrace.cli.output import Exit, Output

if TYPE_CHECKING:
    from headrace_cluster.local import LocalService

__all__ = ["CHAT_MODEL", "chat", "chat_config"]

CHAT_MODEL: Final = "smollm2"
_QUESTIONS: Final = (
    "What does a water mill do?",
    "Give three uses of a queue in software.",
    "Explain in one sentence what a river delta is.",
    "Write two lines about the sea.",
    "Why does bread rise?",
)
_MAX_TOKENS: Final = 64
_TIMEOUT_S: Final = 120.0


def chat_config() -> dict[str, Any]:
    """What is configured for it: SmolLM2-135M-Instruct out of its package, in int8.

    Raises:
        ModelLoadError: the package is not installed.
    """
    from headrace_cluster.bench.models import packaged_language_model

    return {"engine": {"kind": "decoder", "model": str(packaged_language_model())}, "pools": [{"cpus": 2}]}


def chat(service: LocalService, output: Output) -> dict[str, Any]:
    """Stream all answers at once, and see what the audit says of them."""
    from headrace.cli.running import run_to_end

    output.show(
        f"answering {len(_QUESTIONS)} prompts at once with SmolLM2-135M-Instruct, as `headrace submit --stream`"
    )
    output.show(*(f"[{number}] {question}" for number, question in enumerate(_QUESTIONS)))
    started = time.perf_counter()
    status, audit = run_to_end(_stream(service.url, output))
    return {
        "prompts": len(_QUESTIONS),
        "prompts_answered": audit.finished if status == Exit.DONE else 0,
        "prompts_lost": audit.lost,
        "prompts_doubled": audit.doubled,
        "chat_s": round(time.perf_counter() - started, 2),
    }


async def _stream(url: str, output: Output) -> tuple[Exit, Any]:
    from headrace import AsyncClient, Job
    from headrace.cli.streaming import stream_jobs

    params = {"max_tokens": _MAX_TOKENS, "temperature": 0.0}
    jobs = [Job(model=CHAT_MODEL, input=[{"role": "user", "content": text}], params=params) for text in _QUESTIONS]
    async with AsyncClient(url) as client:
        status = await stream_jobs(client, jobs, timeout_s=_TIMEOUT_S, output=output)
        return status, await client.audit(CHAT_MODEL)
