"""Trained models behind one interface: plain torch, or DeepSpeed where a configuration for it is named."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlef.engines.base import Engine


def make_engine(module: nn.Module, *, deepspeed_json: str | None, **settings: Any) -> Engine:
    """`settings`: lr, own_lr, betas, weight_decay, max_grad_norm, warmup_steps, total_steps, device."""
    if deepspeed_json is None:
        from rlef.engines.torch_engine import TorchEngine

        return TorchEngine(module, **settings)
    from rlef.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, json_path=deepspeed_json, **settings)


def make_frozen(module: nn.Module, *, deepspeed_json: str | None, device: torch.device) -> nn.Module:
    """A model that is only read. Under ZeRO-3 ranks hold a part each, and must read it equally often."""
    module.requires_grad_(False)
    if deepspeed_json is None:
        return module.to(device)
    from rlef.engines.deepspeed_engine import frozen

    return frozen(module.to(device), deepspeed_json)
