"""Losses of both reward models: pure functions that return SUMS, to be divided by a count over all micro-batches and ranks.

Bradley-Terry with margin: Llama 2 (arXiv 2307.09288, section 3.2.2). Plackett-Luce: Plackett 1975. Step loss: Lightman et al. 2023
(arXiv 2305.20050).
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

IGNORE = -100.0


def pairwise_ranking_loss(scores: torch.Tensor, ranks: torch.Tensor, *, margin: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """-log sigmoid(s_better - s_worse - margin * (rank gap)), averaged over the pairs of one list; ties make no pair.

    scores, ranks: (n,), rank 0 best. Returns (loss, share of pairs in the right order); both 0 where all are tied.
    """
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    better = ranks[:, None] < ranks[None, :]  # (n, n)
    count = better.sum()
    if count == 0:
        return scores.sum() * 0, scores.new_zeros(())
    delta = (scores[:, None] - scores[None, :])[better]
    gap = (ranks[None, :] - ranks[:, None])[better]
    return -logsigmoid(delta - margin * gap).sum() / count, (delta > 0).float().mean()


def plackett_luce_loss(scores: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-sum_i (s_(i) - logsumexp of the items not above it), over one list. An item's ties are left out of its denominator."""
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    better = ranks[:, None] < ranks[None, :]
    rivals = better | torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)
    spread = scores[None, :].expand(len(ranks), -1).masked_fill(~rivals, -torch.inf)
    loss = (torch.logsumexp(spread, 1) - scores)[better.any(1)].sum()
    delta = (scores[:, None] - scores[None, :])[better]
    return loss + scores.sum() * 0, (delta > 0).float().mean() if len(delta) else scores.new_zeros(())


def cross_seed_loss(scores: torch.Tensor, quality: torch.Tensor, others: torch.Tensor, other_quality: torch.Tensor) -> torch.Tensor:
    """-log sigmoid over all pairs of an item (n,) with an item of another seed (m,), by quality; equal qualities make no pair. A mean."""
    sign = torch.sign(quality[:, None] - other_quality[None, :])
    delta = (scores[:, None] - others[None, :]) * sign
    kept = sign != 0
    return -logsigmoid(delta[kept]).mean() if kept.any() else scores.sum() * 0


def step_loss(logits: torch.Tensor, labels: torch.Tensor, *, balance: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
    """Binary cross-entropy with hard or soft labels, summed over the places whose label is not IGNORE, in fp32.

    logits, labels: any equal shape. `balance`: weights of (wrong, right). Nothing to judge gives 0 with a gradient of 0.
    """
    kept = labels != IGNORE
    chosen = logits[kept]
    chosen = chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen
    targets = labels[kept].to(chosen.dtype)
    weights = balance[0] * (1 - targets) + balance[1] * targets
    return (binary_cross_entropy_with_logits(chosen, targets, reduction="none") * weights).sum()


def masked_after_first_error(labels: list[float | None], threshold: float = 0.5) -> list[float | None]:
    """Labels up to and including the first wrong one; later ones None: human judges stop there, and what follows has no clear meaning."""
    kept: list[float | None] = []
    wrong = False
    for label in labels:
        kept.append(None if wrong else label)
        wrong = wrong or (label is not None and label < threshold)
    return kept


def language_loss(
    hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, parents: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted sum of -log p(token | what stands before it), in fp32.

    hidden: (B, L, H) last hidden states; head: (V, H); ids: (B, L); weights: (B, L), of each token as a target, 0 for none; parents:
    (B, L) place of the token before each, None: the column before it.
    """
    rows, columns = torch.nonzero(weights[:, 1:] > 0, as_tuple=True)
    columns = columns + 1
    before = columns - 1 if parents is None else parents[rows, columns]
    logits = hidden[rows, before] @ head.T.to(hidden.dtype)  # (N, V)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = cross_entropy(logits, ids[rows, columns], reduction="none")
    return (losses * weights[rows, columns]).sum()
