"""The same engine on DeepSpeed, ZeRO 0-3: the only file that imports it.

Accumulation is ours. Under ZeRO-1 and 2 two backwards before a step lose gradient without an error (0.747 of the right update in
0.19.8) unless the boundary is set before each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlef.engines import dist
from rlef.engines.base import StepResult


class DeepSpeedEngine:
    """See rlef.engines.base.Engine. `json_path`: a DeepSpeed configuration; its batch keys, clipping and optimiser are set from here."""

    def __init__(
        self,
        module: nn.Module,
        *,
        json_path: str,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        import deepspeed  # takes seconds, and is not needed by one process

        self.device = torch.device(device)
        if not dist.active():
            deepspeed.init_distributed("gloo" if self.device.type == "cpu" else "nccl", verbose=False)
        settings = json.loads(Path(json_path).read_text())
        settings |= {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        for key in ("train_batch_size", "optimizer", "scheduler"):
            settings.pop(key, None)
        for precision in ("bf16", "fp16"):
            if settings.get(precision, {}).get("enabled") == "auto":
                settings[precision] = {"enabled": precision == "bf16" and next(module.parameters()).dtype == torch.bfloat16}
        self.stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        _drop_auto(settings)
        self.lr, self.warmup_steps, self.steps = lr, warmup_steps, 0
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay)
        self.engine: Any = deepspeed.initialize(model=module.to(self.device), optimizer=optimizer, config=settings)[0]
        self.module: nn.Module = self.engine.module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; engines sum.
        self.engine.backward(loss * dist.world(), scale_wrt_gas=False)

    def step(self) -> StepResult:
        lr = self.lr * min(1.0, (self.steps + 1) / self.warmup_steps) if self.warmup_steps else self.lr
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        before = self.engine.skipped_steps
        self.engine.step()
        skipped = self.engine.skipped_steps > before
        self.steps += not skipped
        norm = self.engine.get_global_grad_norm()
        return StepResult(float(norm) if norm is not None else float("nan"), skipped, lr)

    def discard(self) -> None:
        """As DeepSpeed itself does after an overflow."""
        self.engine.zero_grad()
        self.engine.optimizer.zero_grad()
        held = getattr(self.engine.optimizer, "averaged_gradients", None)
        if held is not None:
            for key in held:
                held[key] = None

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.stage < 3:
            yield from self.module.named_parameters()
            return
        import deepspeed

        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter

    def save_model(self, folder: Path) -> None:
        """All ranks take part: under ZeRO-3 each holds a part of every weight."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.full_parameters()} if self.stage == 3 else None
        if dist.is_main():
            model = self.module.model
            plain = {name.removeprefix("model."): tensor for name, tensor in state.items()} if state is not None else None
            model.save_pretrained(folder, state_dict=plain)  # type: ignore[operator]
        dist.barrier()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(folder), tag="state", client_state={"steps": self.steps})
        dist.barrier()

    def load(self, folder: Path) -> None:
        _, client = self.engine.load_checkpoint(str(folder), tag="state")
        self.steps = int(client["steps"])


def _drop_auto(settings: dict[str, Any]) -> None:
    """transformers fills "auto"; here DeepSpeed's own defaults stand in for it."""
    for key in [key for key, value in settings.items() if value == "auto"]:
        del settings[key]
    for value in settings.values():
        if isinstance(value, dict):
            _drop_auto(value)
