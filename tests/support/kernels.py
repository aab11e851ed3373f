"""What every linear kernel is asked, whatever its weights are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["assert_poison_keeps_to_its_row"]


def assert_poison_keeps_to_its_row(run: Callable[[Tensor], Tensor], x: Tensor, poison: float) -> None:
    """NaN or infinity in the last column of a row makes that row's answer NaN, and no other row's differ by a bit."""
    clean = run(x)
    x[7, -1] = poison

    answer = run(x)

    assert answer[7].isnan().all()
    others = [at for at in range(len(x)) if at != 7]
    assert torch.equal(answer[others], clean[others])
