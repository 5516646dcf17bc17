"""AdamW on plain torch: one process, or several that sum their gradients once a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reward_models import training_state
from rlef.engines import dist
from rlef.engines.base import StepResult, learning_rate, rate_groups


class TorchEngine:
    """See rlef.engines.base.Engine. Weights in half precision are trained through fp32 copies: an lr of 1e-6 never moves a bf16 weight."""

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        own_lr: Mapping[str, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self.max_grad_norm, self.lr, self.warmup_steps, self.total_steps = max_grad_norm, lr, warmup_steps, total_steps
        self._weights: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        self._peaks, groups = [], []
        for peak, weights in rate_groups(module, lr, own_lr):
            masters = [
                weight.detach().float().requires_grad_() if weight.dtype in (torch.bfloat16, torch.float16) else weight
                for weight in weights
            ]
            self._weights += weights
            self._masters += masters
            self._peaks.append(peak)
            groups.append({"params": masters})
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)
        self.steps = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master is not weight and weight.grad is not None:
                # Micro-batches are summed in fp32: in bf16 a small gradient added to a large sum is lost.
                master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None

    def step(self) -> StepResult:
        """Sum over ranks, clip, step. The norm returned is the one before clipping; a gradient that is not finite changes nothing."""
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        if dist.world() > 1:
            flat = dist.all_reduce_sum(torch.cat([master.grad.flatten() for master in self._masters if master.grad is not None]))
            for master, piece in zip(self._masters, flat.split([master.numel() for master in self._masters]), strict=True):
                master.grad = piece.view_as(master)
        norm = nn.utils.clip_grad_norm_(self._masters, self.max_grad_norm)
        skipped = not bool(torch.isfinite(norm))
        lr = learning_rate(self.lr, self.steps, self.warmup_steps, self.total_steps)
        if not skipped:
            for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = learning_rate(peak, self.steps, self.warmup_steps, self.total_steps)
            self.optimizer.step()
            self.steps += 1
            with torch.no_grad():
                for weight, master in zip(self._weights, self._masters, strict=True):
                    if master is not weight:
                        weight.copy_(master)
        self.discard()
        return StepResult(float(norm), skipped, lr)

    def discard(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.grad = master.grad = None

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.module.named_parameters()

    def save_model(self, folder: Path) -> None:
        if dist.is_main():
            self.module.save_pretrained(folder)  # type: ignore[operator]
        dist.barrier()

    def save(self, folder: Path) -> None:
        moments = self.optimizer.state
        training_state.write(folder, self.steps, ({"weights": master.detach(), **moments[master]} for master in self._masters))

    def load(self, folder: Path) -> None:
        self.steps = training_state.steps_of(folder)
        for weight, master, state in zip(self._weights, self._masters, training_state.read(folder, len(self._masters)), strict=True):
            with torch.no_grad():
                master.copy_(state["weights"])
                if master is not weight:
                    weight.copy_(master)
            self.optimizer.state[master] = {
                name: value if name == "step" else value.to(master) for name, value in state.items() if name != "weights"
            }
