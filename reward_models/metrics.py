"""Measures of reward models and of answers chosen by them: numpy and plain Python, no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def auroc(labels: Sequence[float], scores: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties counting half; nan without both classes."""
    y, s = np.asarray(labels) > 0.5, np.asarray(scores, dtype=float)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    order = np.argsort(s, kind="mergesort")
    ranks = np.empty(len(s))
    ranks[order] = np.arange(1, len(s) + 1)
    _, group = np.unique(s, return_inverse=True)
    ranks = (np.bincount(group, ranks) / np.bincount(group))[group]
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auprc(labels: Sequence[float], scores: Sequence[float]) -> float:
    """Average precision of the positive class; nan without a positive. Equal scores are taken together."""
    y, s = np.asarray(labels) > 0.5, np.asarray(scores, dtype=float)
    if not y.any():
        return float("nan")
    order = np.argsort(-s, kind="mergesort")
    y, s = y[order], s[order]
    last = np.append(np.nonzero(np.diff(s))[0], len(s) - 1)
    hits = np.cumsum(y)[last]
    precision = hits / (last + 1)
    return float(np.sum(np.diff(np.concatenate([[0], hits])) * precision) / y.sum())


def reliability(labels: Sequence[float], probabilities: Sequence[float], bins: int = 15) -> list[dict[str, float]]:
    """Bins of equal mass, the least probabilities first: `from` and `to`, the mean `probability`, the mean label (`share`), `count`."""
    y, p = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    # A bin may end among equal probabilities: which of their labels it takes must not be up to the order of the rows.
    _, group = np.unique(p, return_inverse=True)
    y = (np.bincount(group, y) / np.bincount(group))[group] if len(p) else y
    pieces = np.array_split(np.argsort(p, kind="mergesort"), min(bins, len(p))) if len(p) else []
    return [
        {
            "from": float(p[piece].min()),
            "to": float(p[piece].max()),
            "probability": float(p[piece].mean()),
            "share": float(y[piece].mean()),
            "count": len(piece),
        }
        for piece in pieces
    ]


def calibration_error(labels: Sequence[float], probabilities: Sequence[float], bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass; nan without a label."""
    table = reliability(labels, probabilities, bins)
    return sum(one["count"] * abs(one["share"] - one["probability"]) for one in table) / len(labels) if table else float("nan")


def confusion(labels: Sequence[float], scores: Sequence[float], threshold: float) -> dict[str, int]:
    """How many right and wrong steps were called right (score at or above the threshold) and wrong."""
    y, guess = np.asarray(labels) > 0.5, np.asarray(scores, dtype=float) >= threshold
    return {
        f"{truth}_called_{called}": int(((y if truth == "right" else ~y) & (guess if called == "right" else ~guess)).sum())
        for truth in ("right", "wrong")
        for called in ("right", "wrong")
    }


def brier(labels: Sequence[float], probabilities: Sequence[float]) -> float:
    """Mean squared difference; nan without a label."""
    if not len(labels):
        return float("nan")
    return float(np.mean((np.asarray(labels, dtype=float) - np.asarray(probabilities, dtype=float)) ** 2))


def balanced_accuracy(labels: Sequence[float], probabilities: Sequence[float], threshold: float = 0.5) -> float:
    """Mean of the hit rates of both classes; nan without both."""
    y, guess = np.asarray(labels) > 0.5, np.asarray(probabilities) >= threshold
    return float((guess[y].mean() + (~guess[~y]).mean()) / 2) if y.any() and (~y).any() else float("nan")


def kendall_tau(ranks: Sequence[float], scores: Sequence[float]) -> float:
    """Agreement of the order of scores (high is good) with ranks (0 best): pairs in order less pairs out of order, over all pairs of
    unequal rank, so that tied scores count as neither (Somers' d, which is Kendall's tau where nothing is tied); nan without a pair."""
    total = count = 0
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                total += np.sign(scores[i] - scores[j])
                count += 1
    return float(total / count) if count else float("nan")


def first_error(step_scores: Sequence[float], threshold: float) -> int:
    """Index of the first step under the threshold, -1 where there is none."""
    return next((place for place, score in enumerate(step_scores) if score < threshold), -1)


def first_error_f1(truth: Sequence[int], step_scores: Sequence[Sequence[float]], threshold: float) -> float:
    """ProcessBench (arXiv 2412.06559): harmonic mean of the hit rates on solutions with an error and without (-1)."""
    hits = {True: [], False: []}
    for place, scores in zip(truth, step_scores, strict=True):
        hits[place < 0].append(first_error(scores, threshold) == place)
    if not hits[True] or not hits[False]:
        return float("nan")
    right, wrong = float(np.mean(hits[True])), float(np.mean(hits[False]))
    return 2 * right * wrong / (right + wrong) if right + wrong else 0.0


def best_threshold(truth: Sequence[int], step_scores: Sequence[Sequence[float]]) -> float:
    """The threshold in 0.05..0.95 with the best first-error F1; to be fixed on one split and used on another."""
    grid = [step / 20 for step in range(1, 20)]
    values = [first_error_f1(truth, step_scores, threshold) for threshold in grid]
    return grid[int(np.nanargmax(values))] if not np.all(np.isnan(values)) else 0.5


def weighted_vote(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The answer with the greatest sum of weights; ties by count, then by first appearance. None answers do not vote."""
    totals: dict[str, tuple[float, int, int]] = {}
    for place, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is not None:
            total, count, first = totals.get(answer, (0.0, 0, -place))
            totals[answer] = (total + weight, count + 1, first)
    return max(totals, key=lambda answer: totals[answer]) if totals else None


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; ties by first appearance."""
    return weighted_vote(answers, [1.0] * len(answers))


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's; nan for fewer than three values or where either side is constant."""
    if len(one) < 3 or not np.std(one) or not np.std(other):
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def best_of(answers: Sequence[str | None], scores: Sequence[float]) -> str | None:
    """The answer of the best score among those that have one; the first of equals."""
    rows = [(score, -place) for place, (answer, score) in enumerate(zip(answers, scores, strict=True)) if answer is not None]
    return answers[-max(rows)[1]] if rows else None
