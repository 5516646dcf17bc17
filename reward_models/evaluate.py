"""Measures a reward model on labels it was not trained on, through the same functions that RL scores with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_models import metrics
from reward_models.instruction import InstructionRewardModel
from reward_models.losses import masked_after_first_error
from reward_models.process import ProcessRewardModel, aggregate
from reward_models.records import RankedList, SteppedSolution


def evaluate_instruction(model: InstructionRewardModel, lists: Sequence[RankedList]) -> dict[str, Any]:
    """Pair accuracy (within lists; by rank gap; across seeds by quality; of sound items against each kind of flaw), order, calibration."""
    right: list[float] = []
    by_gap: dict[str, list[float]] = defaultdict(list)
    by_flaw: dict[str, list[float]] = defaultdict(list)
    chances: list[float] = []
    taus, scored = [], []
    for row in lists:
        scores = model.raw_scores([item.text for item in row.items])
        taus.append(metrics.kendall_tau([item.rank for item in row.items], scores))
        scored += [(sum(item.scores.values()), score, row.seed_id, len(item.text)) for item, score in zip(row.items, scores, strict=True)]
        for better, high in zip(row.items, scores, strict=True):
            for worse, low in zip(row.items, scores, strict=True):
                if better.rank < worse.rank:
                    hit = float(high > low)
                    right.append(hit)
                    by_gap[str(worse.rank - better.rank)].append(hit)
                    chances.append(1 / (1 + math.exp(-max(-60.0, min(60.0, model.calibration.slope * (high - low))))))
                    if better.kind is None and worse.kind is not None:
                        by_flaw[worse.kind].append(hit)
    across = [
        float((one[1] > other[1]) == (one[0] > other[0]))
        for place, one in enumerate(scored[:400])
        for other in scored[place + 1 : 400 : 7]
        if one[2] != other[2] and one[0] != other[0]
    ]
    values = np.array([row[1] for row in scored])
    return {
        "pair_accuracy": _mean(right),
        "pairs": len(right),
        "by_flaw": {kind: _mean(hits) for kind, hits in sorted(by_flaw.items())},
        "by_gap": {gap: _mean(hits) for gap, hits in sorted(by_gap.items())},
        "cross_seed_accuracy": _mean(across),
        "kendall_tau": float(np.nanmean(taus)) if taus else math.nan,
        # Each pair counts in both directions, so that the labels are not all 1.
        "ece": metrics.calibration_error([1.0] * len(chances) + [0.0] * len(chances), chances + [1 - p for p in chances])
        if chances
        else math.nan,
        "length_correlation": float(np.corrcoef(values, [row[3] for row in scored])[0, 1])
        if len(values) > 2 and values.std()
        else math.nan,
    }


def evaluate_process(
    model: ProcessRewardModel, solutions: Sequence[SteppedSolution], *, threshold: float, batch_size: int = 64
) -> dict[str, Any]:
    """Step measures on steps up to and including the first error; first-error F1 at `threshold`, which another split has fixed."""
    scored = model.score([row.question for row in solutions], [row.steps for row in solutions], batch_size)
    labels: list[float] = []
    chances: list[float] = []
    depths: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    truths, step_scores = [], []
    for row, result in zip(solutions, scored, strict=True):
        if result.truncated:
            continue
        kept = [
            (label, score)
            for label, score in zip(masked_after_first_error(list(row.labels)), result.scores, strict=True)
            if label is not None
        ]
        labels += [label for label, _ in kept]
        chances += [score for _, score in kept]
        if row.depth is not None:
            depths[row.depth][0].extend(label for label, _ in kept)
            depths[row.depth][1].extend(score for _, score in kept)
        if any(label is not None for label in row.labels):  # a solution that nobody judged is none without an error
            truths.append(next((place for place, label in enumerate(row.labels) if label is not None and label < 0.5), -1))
            step_scores.append(result.scores)
    hard = [float(label >= 0.5) for label in labels]
    return {
        "step_auroc": metrics.auroc(hard, chances),
        "step_accuracy": float(np.mean((np.array(chances) >= 0.5) == (np.array(hard) > 0.5))) if hard else math.nan,
        "balanced_accuracy": metrics.balanced_accuracy(hard, chances),
        "auprc_errors": metrics.auprc([1 - label for label in hard], [1 - score for score in chances]) if hard else math.nan,
        "ece": metrics.calibration_error(labels, chances) if hard else math.nan,
        "brier": metrics.brier(labels, chances) if hard else math.nan,
        "first_error_f1": metrics.first_error_f1(truths, step_scores, threshold),
        "threshold": threshold,
        "by_depth": {str(depth): metrics.auroc(*depths[depth]) for depth in sorted(depths)},
        "steps": len(labels),
        "truncated": sum(result.truncated for result in scored),
        **_votes(solutions, [aggregate(result.scores) for result in scored]),
    }


def _votes(solutions: Sequence[SteppedSolution], scores: Sequence[float]) -> dict[str, float]:
    """Accuracy of majority, weighted vote and best-of over the solutions of each problem, where answers and their truth are given.

    `within_problem`: share of pairs of a right and a wrong solution of one problem whose scores are in order. 0.5 is chance, whatever
    the AUROC: a model that only knows which problems are hard has a good AUROC, and is no help to a vote or to RL.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(solutions):
        if row.correct is not None:
            groups[row.problem_id].append(place)
    outcomes: dict[str, list[float]] = defaultdict(list)
    for places in groups.values():
        answers = [solutions[place].answer for place in places]
        right = {solutions[place].answer for place in places if solutions[place].correct}
        weights = [scores[place] for place in places]
        chosen = {
            "majority": metrics.majority_vote(answers),
            "weighted_vote": metrics.weighted_vote(answers, weights),
            "best_of": metrics.best_of(answers, weights),
        }
        good = [scores[place] for place in places if solutions[place].correct]
        bad = [scores[place] for place in places if not solutions[place].correct]
        outcomes["within_problem"] += [float(high > low) + 0.5 * (high == low) for high in good for low in bad]
        for name, answer in chosen.items():
            outcomes[name].append(float(answer is not None and answer in right))
    return {name: _mean(values) for name, values in outcomes.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
