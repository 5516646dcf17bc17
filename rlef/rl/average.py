"""A running average of the policy's weights (WARP, arXiv 2406.16768)."""

from __future__ import annotations

import torch


class Average:
    """Policy gradients are mostly noise, and averaging takes it out of what is saved."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def add(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def put_into(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.weights[name])
