"""Trained models behind one interface: plain torch, or DeepSpeed where a configuration for it is named."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlef.engines.base import Engine


def make_engine(module: nn.Module, *, deepspeed_json: str | None, **settings: Any) -> Engine:
    """`settings`: lr, own_lr, betas, weight_decay, max_grad_norm, warmup_steps, total_steps, device."""
    if deepspeed_json is None:
        from rlef.engines.torch_engine import TorchEngine

        return TorchEngine(module, **settings)
    from rlef.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, json_path=deepspeed_json, **settings)
