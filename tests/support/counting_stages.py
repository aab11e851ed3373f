"""Stages for tests of the pipeline: they do little, count how often they run, and can be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace_workers.compression.pipeline import Measures
from headrace_workers.compression.quantization.quantize import quantize
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject

__all__ = ["INT8", "QUICK", "TWO", "Stages"]

QUICK = Measures(examples=16, rounds=1, round_tokens=64, every_stage=False)
INT8: dict[str, Any] = {"stages": [{"kind": "quantize"}]}
TWO: dict[str, Any] = {"stages": [{"kind": "prune", "method": "threshold", "threshold": 0.05}, {"kind": "quantize"}]}


class Stages:
    """Stages that do little, count how often they run, and can be interrupted."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: dict[str, BaseException] = {}

    def __getitem__(self, kind: str) -> Callable[[Subject, Any, StageContext], Subject]:
        def run(subject: Subject, stage: Any, context: StageContext) -> Subject:
            self.ran.append(kind)
            context.progress("working", 0.5)
            if kind in self.fails:
                raise self.fails.pop(kind)
            if kind == "quantize":
                return quantize(subject, stage, context)
            context.note(f"{kind} set small weights to zero")
            for parameter in subject.module.parameters():
                parameter.data[parameter.abs() < stage.threshold] = 0
            return subject

        return run

    def functions(self) -> dict[str, Any]:
        return {kind: self[kind] for kind in ("prune", "quantize")}
