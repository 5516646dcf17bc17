"""Log-probabilities of chosen tokens and entropies from logits, block by block: no second tensor of their size is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

BLOCK = 2**22  # logits worked on at once: 16 MiB in fp32


def token_logprobs(
    logits: torch.Tensor, token: torch.Tensor, temperature: float = 1.0, *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of softmax(logits / temperature), logits (N, V): log-probabilities (N,) of `token` (N,) and, where wanted, entropies (N,).

    Both in fp32 or wider. The logits are used up: their own backward overwrites them with their gradient (a second one raises
    RuntimeError). An entropy that takes a gradient is computed on copies.
    """
    if entropy and torch.is_grad_enabled() and logits.requires_grad:
        scaled = _scaled(logits, temperature)
        normaliser = torch.logsumexp(scaled, -1)
        spread = normaliser - ((scaled - normaliser[:, None]).exp() * scaled).sum(-1)
        return scaled.gather(-1, token[:, None]).squeeze(-1) - normaliser, spread
    logprobs, normaliser = _TokenLogprobs.apply(logits, token, temperature)
    return logprobs, _entropies(logits, normaliser, temperature) if entropy else None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, token: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        chosen, normaliser = (torch.empty(len(logits), dtype=wide, device=logits.device) for _ in range(2))
        for rows in _blocks(logits):
            scaled = _scaled(logits[rows], temperature)
            normaliser[rows] = torch.logsumexp(scaled, -1)
            chosen[rows] = scaled.gather(-1, token[rows, None]).squeeze(-1)
        ctx.save_for_backward(logits, token, normaliser)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(normaliser)
        return chosen - normaliser, normaliser

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        logits, token, normaliser = ctx.saved_tensors
        for rows in _blocks(logits):
            part = _scaled(logits[rows], ctx.temperature).sub_(normaliser[rows, None]).exp_().mul_(-gradient[rows, None])
            part.scatter_add_(-1, token[rows, None], gradient[rows, None])
            if ctx.temperature != 1:
                part.div_(ctx.temperature)
            if part.data_ptr() != logits[rows].data_ptr():
                logits[rows] = part
        return logits, None, None


@torch.no_grad()
def _entropies(logits: torch.Tensor, normaliser: torch.Tensor, temperature: float) -> torch.Tensor:
    found = torch.empty_like(normaliser)
    for rows in _blocks(logits):
        scaled = _scaled(logits[rows], temperature)
        found[rows] = normaliser[rows] - ((scaled - normaliser[rows, None]).exp_() * scaled).sum(-1)
    return found


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """A view of fp32 logits at temperature 1, else a copy."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1 else wide / temperature


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    size = max(1, BLOCK // max(1, logits.shape[-1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
