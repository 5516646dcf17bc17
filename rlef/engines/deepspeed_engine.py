"""The same engine on DeepSpeed, ZeRO 0-3.

Accumulation is ours. Under ZeRO-1 and 2 two backwards before a step lose gradient without an error (0.747 of the right update in
0.19.8) unless the boundary is set before each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from reward_models import training_state
from reward_models.zero import divide, gather, whole
from rlef.engines import dist
from rlef.engines.base import StepResult, learning_rate, rate_groups


class DeepSpeedEngine:
    """See rlef.engines.base.Engine. `json_path`: a DeepSpeed configuration; its batch keys, clipping and optimiser are set from here."""

    def __init__(
        self,
        module: nn.Module,
        *,
        json_path: str,
        lr: float,
        own_lr: Mapping[str, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        import deepspeed  # takes seconds, and is not needed by one process

        self.device = torch.device(device)
        dist.init_single(self.device)
        settings = _settings(json_path, max_grad_norm, half=next(module.parameters()).dtype == torch.bfloat16)
        self.stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        self.lr, self.warmup_steps, self.total_steps, self.steps = lr, warmup_steps, total_steps, 0
        groups = rate_groups(module, lr, own_lr)
        self._peaks = [peak for peak, _ in groups]
        self._trained = [parameter for _, parameters in groups for parameter in parameters]
        trained = [{"params": parameters} for _, parameters in groups]
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
        """The norm is the one before clipping; of a skipped step it is not finite."""
        lr = learning_rate(self.lr, self.steps, self.warmup_steps, self.total_steps)
        plain_norm = None if hasattr(self.engine.optimizer, "overflow") else self._plain_norm()
        if plain_norm is not None and not torch.isfinite(plain_norm):
            self.discard()  # without ZeRO and in fp32 DeepSpeed would step on NaN
            return StepResult(float(plain_norm), True, lr)
        for group, peak in zip(self.engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = learning_rate(peak, self.steps, self.warmup_steps, self.total_steps)
        before = self.engine.skipped_steps
        self.engine.step()
        skipped = self.engine.skipped_steps > before
        self.steps += not skipped
        norm = self.engine.get_global_grad_norm() if plain_norm is None else plain_norm
        return StepResult(float(norm), skipped, lr)

    def _plain_norm(self) -> torch.Tensor:
        return nn.utils.get_total_norm([parameter.grad for parameter in self.module.parameters() if parameter.grad is not None])

    def discard(self) -> None:
        """As DeepSpeed itself does after an overflow: parameters' gradients, and what each ZeRO stage has set aside."""
        self.engine.zero_grad()
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        for held in ("averaged_gradients", "all_grad_tensors"):
            if hasattr(optimizer, held):
                setattr(optimizer, held, {} if self.stage == 3 else dict.fromkeys(getattr(optimizer, held)))
        if 0 < self.stage < 3 and hasattr(optimizer, "micro_step_id"):
            optimizer.micro_step_id = -1  # its INITIAL_MICRO_STEP_ID: the next backward starts a new sum
            if optimizer.cpu_offload:
                optimizer.reset_cpu_buffers()

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All ranks must walk it to the end: under ZeRO-3 every weight is gathered from all of them and freed again."""
        for name, parameter in self.module.named_parameters():
            with whole(parameter):
                yield name, parameter

    def save_model(self, folder: Path) -> None:
        """All ranks take part: under ZeRO-3 each holds a part of every weight."""
        model = self.module if isinstance(self.module, PreTrainedModel) else self.module.model
        assert isinstance(model, PreTrainedModel)
        weights = full_state(model)
        if dist.is_main():
            model.save_pretrained(folder, state_dict=weights)
        dist.barrier()

    def save(self, folder: Path) -> None:
        training_state.write(folder, self.steps, gather(self.engine, self._trained))

    def load(self, folder: Path) -> None:
        self.steps = training_state.steps_of(folder)
        divide(self.engine, self._trained, training_state.read(folder, len(self._trained)))


def frozen(module: nn.Module, json_path: str) -> nn.Module:
    """A model that is only read, which ZeRO-3 divides among ranks; lower stages leave it as it is."""
    settings = _settings(json_path, 0.0, half=next(module.parameters()).dtype == torch.bfloat16)
    zero = settings.get("zero_optimization", {})
    if zero.get("stage", 0) < 3:
        return module
    import deepspeed

    zero.pop("offload_optimizer", None)  # it has none
    engine: nn.Module = deepspeed.initialize(model=module, config=settings)[0]
    engine.eval()  # its own gives nothing back
    return engine


def divided(module: nn.Module) -> bool:
    """Whether ZeRO-3 has left this rank a part of its weights."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def join(json_path: str | None) -> None:
    """Tell DeepSpeed of the process group, where a configuration for it is given. Its engines see for themselves; a reference model that
    transformers divides while it is loaded does not, and takes this rank for the only one."""
    if json_path is not None and dist.active():
        import deepspeed

        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight whole, copied to the CPU of the main process; empty on the others. All ranks must call it.

    Weights are gathered one at a time, so that no device ever holds the whole model. Tied weights come once.
    """
    state: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        with whole(parameter):
            if dist.is_main():
                state[name] = parameter.detach().cpu().clone()
    if dist.is_main():
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        state |= {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items() if name not in parameters}
    return state


def _settings(json_path: str, max_grad_norm: float, *, half: bool) -> dict[str, Any]:
    """The user's DeepSpeed configuration with what the engine decides itself."""
    settings = json.loads(Path(json_path).read_text())
    for key in ("train_batch_size", "optimizer", "scheduler"):
        settings.pop(key, None)
    for precision in ("bf16", "fp16"):
        if settings.get(precision, {}).get("enabled") == "auto":
            settings[precision] = settings[precision] | {"enabled": precision == "bf16" and half}
    _drop_auto(settings)
    if settings.get("bf16", {}).get("enabled"):
        settings["bf16"]["check_grad_overflow"] = True  # otherwise ZeRO-1 and 2 step on NaN
        settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})
        zero = settings.setdefault("zero_optimization", {})
        zero["stage"] = max(1, zero.get("stage", 0))  # without ZeRO its bf16 updates came out at 0.8 of the right size
    return settings | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps on offloaded weights as well
        "steps_per_print": 10**9,
    }


def _drop_auto(settings: dict[str, Any]) -> None:
    """transformers fills "auto"; here DeepSpeed's own defaults stand in for it."""
    for key in [key for key, value in settings.items() if value == "auto"]:
        del settings[key]
    for value in settings.values():
        if isinstance(value, dict):
            _drop_auto(value)
