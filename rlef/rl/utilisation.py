"""How well an update uses the device: operations that real tokens need, over what matrix products of the same dtype reach there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

TRIES = 15


@dataclass(frozen=True)
class Multiplied:
    """Parameters that a token is multiplied with. Reading an embedding is no product, attention's own products are not counted."""

    body: int  # by every token
    head: int  # the LM head's, by the states before answer tokens alone

    @classmethod
    def of(cls, model: PreTrainedModel) -> Multiplied:
        """Of a dense causal model that is whole (before ZeRO-3 divides it)."""
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        outside = {id(layer.weight) for layer in (embedding, head)}
        body = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outside)
        return cls(body, head.weight.numel())

    def update_flops(self, tokens: float, answer_tokens: float, *, policy: bool = True) -> float:
        """Of an update that `tokens` went through, prompts included and padding not: 6 a parameter and token (2 forward, 4 backward)
        for the critic and, where it is trained, the `policy`. What is computed twice, as under checkpointing, counts once.
        """
        critic = 6.0 * self.body * tokens
        return critic + (6.0 * (self.body * tokens + self.head * answer_tokens) if policy else 0.0)


def matmul_rate(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the best of 15 products of token states with weights of the model's layers, in `dtype`."""
    layers = [(name, weight) for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    shapes = sorted({(weight.shape[1], weight.shape[0]) for _, weight in layers}, key=lambda shape: -shape[0] * shape[1])[:3]
    rows = 4096 if device.type == "cuda" else 512
    noise = torch.Generator(device).manual_seed(0)  # its own: the run's draws stay as they are
    best = 0.0
    for number in range(TRIES):
        inner, outer = shapes[number % len(shapes)]
        states, weight = (torch.randn(*size, generator=noise, device=device, dtype=dtype) for size in ((rows, inner), (outer, inner)))
        _settle(device)
        began = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        _settle(device)
        best = max(best, 2.0 * rows * inner * outer / (time.perf_counter() - began))
    return best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
