"""PPO's losses: pure functions, tensors in, (sum over the mask, sums for the log) out.

Every function returns SUMS. The loop divides by the token (or row) count of the whole optimiser step over all micro-batches and
ranks, which is what makes the gradient independent of how rows are cut up. Source: PPO, Schulman et al. 2017 (arXiv 1707.06347);
dual clip, Ye et al. 2020 (arXiv 1912.09729); clip-higher, DAPO (arXiv 2503.14476); constant denominator, Dr. GRPO (arXiv 2503.20783).
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from rlef.rl.advantages import masked

LossMean = Literal["token", "sequence", "constant"]
Correction = Literal["none", "token", "sequence"]


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    dual_clip: float | None = 3.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate, summed. All tensors (B, T). Sums for the log: clip_fraction, approx_kl, ratio.

    The log-ratio is clamped to +-20 before exp. A ratio is clipped to 1 - clip_range .. 1 + clip_range_high (None: clip_range). With
    `dual_clip` c, the loss of a negative advantage is at most c * |A|. `weights` multiply each token's loss after all clipping.
    """
    log_ratio = masked(logprobs - old_logprobs, mask).clamp(-20, 20)
    advantages = masked(advantages, mask)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    with torch.no_grad():
        sums = {
            "clip_fraction": masked((clipped > plain).float(), mask).sum(),
            "approx_kl": masked(torch.expm1(log_ratio) - log_ratio, mask).sum(),
            "ratio": masked(ratio, mask).sum(),
        }
    return masked(loss if weights is None else loss * weights, mask).sum(), sums


def token_shares(mask: torch.Tensor, how: LossMean, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each token counts, (B, T), and this batch's part of the count to divide the sum by.

    token: all alike, over all tokens. sequence: each row's mean, over rows; it favours short right answers and long wrong ones. constant:
    each row's sum over `max_tokens`, over rows.
    """
    lengths = mask.sum(1, keepdim=True)
    if how == "token":
        return mask, mask.sum()
    return mask / (lengths.clamp(min=1) if how == "sequence" else max_tokens), (lengths > 0).sum().to(mask.dtype)


def mismatch_weights(
    old_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, mask: torch.Tensor, *, how: Correction, cap: float
) -> torch.Tensor:
    """Weights (B, T) for tokens of a sampler that is not quite the policy that is trained: w = exp(old - rollout), without gradient.

    token: min(w, cap) a token (truncated importance sampling, as open-instruct and verl have it). sequence: 0 for rows whose mean log w
    leaves -log(cap) .. log(cap), else 1. Where the sampler gave no finite log-probability w is 1.
    """
    log_weight = masked((old_logprobs - rollout_logprobs).detach(), mask)
    log_weight = torch.where(torch.isfinite(log_weight), log_weight, torch.zeros_like(log_weight)).clamp(-20, 20)
    if how == "token":
        return log_weight.exp().clamp(max=cap)
    if how == "sequence":
        mean = log_weight.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return (mean.abs() <= math.log(cap)).to(mask.dtype).expand_as(mask)
    return torch.ones_like(mask)


def adapted_kl_coef(coef: float, kl: float, *, target: float, horizon: int, rows: int) -> float:
    """The coefficient after `rows` answers with a mean `kl` (nats an answer), on its way to `target` (Ziegler et al., arXiv 1909.08593).

    A KL that is not finite leaves it as it is.
    """
    if not math.isfinite(kl):
        return coef
    return coef * (1 + max(-0.2, min(0.2, kl / target - 1)) * rows / horizon)


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, *, clip: float | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Half squared error, summed; with `clip`, the worse of it and the error of a value moved at most `clip` from the old one."""
    values, old_values, returns = masked(values, mask), masked(old_values, mask), masked(returns, mask)
    error = (values - returns).square()
    clipped_count = error.new_zeros(())
    if clip is not None:
        near = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        clipped_count = masked((near > error).to(error.dtype), mask).sum().detach()
        error = torch.maximum(error, near)
    return 0.5 * error.sum(), {"clip_fraction": clipped_count}


def explained_variance(moments: torch.Tensor) -> float:
    """1 - Var(R - V) / Var(R) from sums [n, R, R^2, e, e^2] with e = R - V; nan where returns do not vary."""
    count, total, squares, error, error_squares = moments.double().tolist()
    if count < 2:
        return float("nan")
    variance = squares / count - (total / count) ** 2
    return float("nan") if variance < 1e-12 else 1 - (error_squares / count - (error / count) ** 2) / variance
