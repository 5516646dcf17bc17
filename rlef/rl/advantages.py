"""From per-token rewards and values to advantages: pure functions on (B, T) tensors.

Masked positions may hold anything, NaN included: they are replaced by torch.where before any arithmetic.
Sources: GAE, Schulman et al. 2015 (arXiv 1506.02438); KL estimators, Schulman 2020 ("Approximating KL divergence").
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def masked(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`values` where mask is 1, else 0."""
    return torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))


def k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi - log ref on samples of pi: the only estimator that, in the reward, gives the gradient of KL(pi || ref)."""
    return logprobs - ref_logprobs


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(-d) - 1 + d >= 0, by expm1: for logs only, its gradient in a reward is biased. d is clamped to +-20."""
    difference = (logprobs - ref_logprobs).clamp(-20, 20)
    return torch.expm1(-difference) + difference


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, (B, T) each. The last token of a row is terminal.

    A position with mask 0 is not a state: value and advantage of the next real token are carried over it, so gaps in the
    middle of a row (tool output) change nothing.
    """
    rewards, values = masked(rewards, mask), masked(values, mask)
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.new_zeros(rewards.shape[0])
    next_advantage = next_value
    for t in range(rewards.shape[1] - 1, -1, -1):
        real = mask[:, t].bool()
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(real, advantage, torch.zeros_like(advantage))
        next_value = torch.where(real, values[:, t], next_value)
        next_advantage = torch.where(real, advantage, next_advantage)
    return advantages, masked(advantages + values, mask)


def whiten(values: torch.Tensor, mask: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean 0 and variance 1 over the mask on all ranks. `reduce` sums a tensor over ranks.

    Unchanged where fewer than 2 tokens or a variance under 1e-8 would turn noise (or nothing) into a signal.
    """
    chosen = masked(values, mask).double()
    total = reduce(torch.stack([mask.double().sum(), chosen.sum()]))
    count, mean = total[0], total[1] / total[0].clamp(min=1)
    centred = masked(chosen - mean, mask)
    variance = reduce(centred.square().sum()) / count.clamp(min=1)
    if count < 2 or variance < 1e-8:
        return masked(values, mask)
    return (centred / variance.sqrt()).to(values.dtype)
