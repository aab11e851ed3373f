"""An encoder as an ONNX file in fp32: what the peers of `bench compression` start from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrace_workers.compression.subject import TextSubject

__all__ = ["write_onnx_encoder"]


class _HiddenStates(nn.Module):
    """Takes its two tensors by place, and answers with nothing else than hidden states."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self._module(input_ids=input_ids, attention_mask=attention_mask)[0]


def write_onnx_encoder(subject: TextSubject, path: Path) -> None:
    """Write the model that takes ids and mask, int64 [texts, positions], and answers [texts, positions, width]."""
    batch = subject.batch(["Two texts of", "different lengths, for both to be free."])
    texts, positions = torch.export.Dim("texts", min=1, max=4096), torch.export.Dim("positions", min=1, max=512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        torch.onnx.export(
            _HiddenStates(subject.module),
            (batch.inputs["input_ids"], batch.inputs["attention_mask"]),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_shapes={"input_ids": {0: texts, 1: positions}, "attention_mask": {0: texts, 1: positions}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
