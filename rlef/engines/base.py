"""What a trained model looks like to a loop: forward, backward, step, full parameters, save and load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class StepResult:
    """One optimiser step. `skipped`: the gradient was not finite, nothing was changed."""

    grad_norm: float
    skipped: bool
    lr: float


class Engine(Protocol):
    """A model with its optimiser. Gradients are SUMMED over ranks (not averaged): divide the loss by a global count yourself."""

    module: nn.Module
    device: torch.device

    def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add this micro-batch's gradient; `last` marks the last one before `step`."""
        ...

    def step(self) -> StepResult: ...

    def discard(self) -> None:
        """Forget the gradients gathered since the last step."""
        ...

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def save_model(self, folder: Path) -> None:
        """Write what `from_pretrained` loads."""
        ...

    def save(self, folder: Path) -> None:
        """Write all state needed to go on."""
        ...

    def load(self, folder: Path) -> None: ...
