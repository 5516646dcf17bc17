"""PPO's losses: pure functions, tensors in, (sum over the mask, sums for the log) out.

Every function returns SUMS. The loop divides by the token count of the whole optimiser step over all micro-batches and
ranks, which is what makes the gradient independent of how rows are cut up. Source: PPO, Schulman et al. 2017 (arXiv 1707.06347);
dual clip, Ye et al. 2020 (arXiv 1912.09729).
"""

from __future__ import annotations

import torch

from rlef.rl.advantages import masked


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_range: float = 0.2,
    dual_clip: float | None = 3.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate, summed. All arguments (B, T). Sums for the log: clip_fraction, approx_kl, ratio.

    The log-ratio is clamped to +-20 before exp. With `dual_clip` c, the loss of a negative advantage is at most c * |A|.
    """
    log_ratio = masked(logprobs - old_logprobs, mask).clamp(-20, 20)
    advantages = masked(advantages, mask)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    with torch.no_grad():
        sums = {
            "clip_fraction": masked((clipped > plain).float(), mask).sum(),
            "approx_kl": masked(torch.expm1(log_ratio) - log_ratio, mask).sum(),
            "ratio": masked(ratio, mask).sum(),
        }
    return masked(loss, mask).sum(), sums


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
