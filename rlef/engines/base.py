"""What a trained model looks like to a loop: forward, backward, step, full parameters, save and load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def learning_rate(peak: float, step: int, warmup: int, total: int | None) -> float:
    """Of the `step`-th optimiser step, from 0: a linear rise over `warmup` steps; with `total`, a linear fall to 0 at that step."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = 1.0 if total is None else max(0.0, min(1.0, (total - step) / max(1, total - warmup)))
    return peak * min(rise, fall)


def rate_groups(module: nn.Module, lr: float, own_lr: Mapping[str, float] | None) -> list[tuple[float, list[nn.Parameter]]]:
    """(peak learning rate, trained parameters): those of `lr`, then those of each child of the module that has its own."""
    rates = {"": lr, **(own_lr or {})}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            child = name.split(".")[0]
            groups[child if child in rates else ""].append(parameter)
    return [(rates[name], parameters) for name, parameters in groups.items() if parameters]


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
