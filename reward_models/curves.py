"""Best-of-N, weighted vote, majority and pass@N as N grows, and how far the score runs ahead of the truth: no model here.

All are means over the subsets of N of a problem's n solutions, which is unbiased for N fresh ones: in closed form where there is one
(pass@N, best-of-N), else over all subsets, or `SUBSETS` drawn ones where there are more.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from reward_models.metrics import majority_vote, weighted_vote
from reward_models.records import Candidate
from reward_models.statistics import mean_interval, paired_difference, pass_at_k

SUBSETS = 256


def curves(groups: Sequence[Sequence[Candidate]], *, seed: int = 0) -> dict[str, Any] | None:
    """Rows for N = 1, 2, 4, ..., each with means and 95 % bootstrap intervals over problems. None where no problem has two solutions.

    All N are measured on the same problems: those with at least as many solutions as the median one; `left_out` counts the others.
    """
    most = statistics.median_low([len(group) for group in groups]) if groups else 0
    used = [group for group in groups if len(group) >= most]
    if most < 2:
        return None
    rows = [_row(used, 2**power, seed) for power in range(most.bit_length())]
    return {"problems": len(used), "left_out": len(groups) - len(used), "rows": rows}


def _row(groups: Sequence[Sequence[Candidate]], size: int, seed: int) -> dict[str, Any]:
    passed = [pass_at_k(len(group), sum(one.correct and one.answer is not None for one in group), size) for group in groups]
    best = [best_of_n(group, size) for group in groups]
    votes = [vote_accuracy(group, size, seed=(seed, place)) for place, group in enumerate(groups)]
    majority, weighted = ([vote[kind] for vote in votes] for kind in (0, 1))
    return {
        "n": size,
        "pass": mean_interval(passed),
        "majority": mean_interval(majority),
        "weighted_vote": mean_interval(weighted),
        "best_of": mean_interval([gold for gold, _ in best]),
        "weighted_vote_minus_majority": paired_difference(weighted, majority),
        "best_of_minus_majority": paired_difference([gold for gold, _ in best], majority),
        # Nats between best-of-N and the policy (Gao et al. 2022, arXiv 2210.10760).
        "kl": math.log(size) - (size - 1) / size,
        "proxy": float(np.mean([proxy for _, proxy in best])),
    }


def best_of_n(group: Sequence[Candidate], size: int) -> tuple[float, float]:
    """Chance that the best-scored of `size` solutions drawn without replacement is right, and the mean of its score.

    Solutions without an answer come last and count as score 0; among equals the first is taken.
    """
    order = sorted(range(len(group)), key=lambda place: (group[place].answer is None, -group[place].score))
    subsets = math.comb(len(group), size)
    gold = proxy = 0.0
    for better, place in enumerate(order):
        chance = math.comb(len(group) - 1 - better, size - 1) / subsets
        one = group[place]
        if one.answer is not None:
            gold += chance * one.correct
            proxy += chance * one.score
    return gold, proxy


def vote_accuracy(group: Sequence[Candidate], size: int, *, seed: Sequence[int] = (0,)) -> tuple[float, float]:
    """Share of subsets of `size` solutions whose majority, and whose vote weighted by score, is right."""
    right = {one.answer for one in group if one.correct and one.answer is not None}
    hits = []
    for subset in _subsets(len(group), size, seed):
        answers, weights = [group[place].answer for place in subset], [group[place].score for place in subset]
        hits.append((majority_vote(answers) in right, weighted_vote(answers, weights) in right))
    return float(np.mean([one for one, _ in hits])), float(np.mean([other for _, other in hits]))


def _subsets(count: int, size: int, seed: Sequence[int]) -> Iterator[Sequence[int]]:
    """In order of appearance, as ties are broken by it."""
    if math.comb(count, size) <= SUBSETS:
        yield from itertools.combinations(range(count), size)
        return
    rng = np.random.default_rng([*seed, size])
    for _ in range(SUBSETS):
        yield sorted(rng.choice(count, size, replace=False).tolist())
