"""Measures a reward model on labels it was not trained on, through the same functions that RL scores with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_models import metrics
from reward_models.curves import curves
from reward_models.instruction import InstructionRewardModel
from reward_models.losses import masked_after_first_error
from reward_models.probes import probe
from reward_models.process import ProcessRewardModel, aggregate
from reward_models.records import Candidate, RankedItem, RankedList, SteppedSolution
from reward_models.statistics import bootstrap_intervals

PROBED = 100  # solutions that hack probes are tried on: each probe scores them once more


# ------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True)
class ScoredList:
    """A list with its raw scores, and what each of its pairs comes to."""

    row: RankedList
    scores: Sequence[float]
    hits: Sequence[float]  # 1 where the better item of a pair scores higher
    chances: Sequence[float]  # sigmoid(a (s_better - s_worse))
    pairs: Sequence[tuple[RankedItem, RankedItem]]  # better, worse
    tau: float


def score_lists(model: InstructionRewardModel, lists: Sequence[RankedList]) -> list[ScoredList]:
    """All pairs of items of unequal rank, list by list."""
    found = []
    for row in lists:
        scores = model.raw_scores([item.text for item in row.items])
        hits, chances, pairs = [], [], []
        for better, high in zip(row.items, scores, strict=True):
            for worse, low in zip(row.items, scores, strict=True):
                if better.rank < worse.rank:
                    hits.append(float(high > low))
                    chances.append(1 / (1 + math.exp(-max(-60.0, min(60.0, model.calibration.slope * (high - low))))))
                    pairs.append((better, worse))
        tau = metrics.kendall_tau([item.rank for item in row.items], scores)
        found.append(ScoredList(row, scores, hits, chances, pairs, tau))
    return found


def list_measures(lists: Sequence[ScoredList]) -> dict[str, float]:
    """Numbers over all lists; nan where there is no pair to measure by."""
    hits = [hit for one in lists for hit in one.hits]
    chances = [chance for one in lists for chance in one.chances]
    taus = [one.tau for one in lists if not math.isnan(one.tau)]
    alike = [
        hit
        for one in lists
        for hit, (better, worse) in zip(one.hits, one.pairs, strict=True)
        if abs(len(better.text) - len(worse.text)) <= 0.1 * max(len(better.text), len(worse.text))
    ]
    scores = [score for one in lists for score in one.scores]
    return {
        "pair_accuracy": _mean(hits),
        "cross_seed_accuracy": _cross_seed_accuracy(lists),
        # Pairs whose lengths differ by a tenth at most: what is left of the accuracy without a taste for length.
        "length_matched_accuracy": _mean(alike),
        "kendall_tau": _mean(taus),
        # Each pair counts in both directions, so that the labels are not all 1.
        "ece": metrics.calibration_error([1.0] * len(chances) + [0.0] * len(chances), chances + [1 - p for p in chances]),
        "length_correlation": metrics.correlation(scores, [len(item.text) for one in lists for item in one.row.items]),
    }


def _cross_seed_accuracy(lists: Sequence[ScoredList]) -> float:
    """Share of pairs of different seeds and qualities that are in order, over a seventh of the pairs of the first 400 items."""
    items = [
        (sum(item.scores.values()), score, one.row.seed_id) for one in lists for item, score in zip(one.row.items, one.scores, strict=True)
    ][:400]
    if not items:
        return math.nan
    quality, scores = np.array([item[0] for item in items]), np.array([item[1] for item in items])
    seeds = np.unique([item[2] for item in items], return_inverse=True)[1]
    place = np.arange(len(items))
    ahead = place[None, :] - place[:, None] - 1
    one, other = np.nonzero((ahead >= 0) & (ahead % 7 == 0))
    kept = (seeds[one] != seeds[other]) & (quality[one] != quality[other])
    one, other = one[kept], other[kept]
    return _mean((np.sign(scores[one] - scores[other]) == np.sign(quality[one] - quality[other])).astype(float))


def evaluate_instruction(model: InstructionRewardModel, lists: Sequence[RankedList]) -> dict[str, Any]:
    """Pair accuracy (within lists; by rank gap; across seeds by quality; of sound items against each kind of flaw), order, calibration.
    `intervals`: 95 % bootstrap intervals over seeds, by name."""
    scored = score_lists(model, lists)
    seeds: dict[str, list[ScoredList]] = defaultdict(list)
    for one in scored:
        seeds[one.row.seed_id].append(one)
    by_gap: dict[str, list[float]] = defaultdict(list)
    by_flaw: dict[str, list[float]] = defaultdict(list)
    for one in scored:
        for hit, (better, worse) in zip(one.hits, one.pairs, strict=True):
            by_gap[str(worse.rank - better.rank)].append(hit)
            if better.kind is None and worse.kind is not None:
                by_flaw[worse.kind].append(hit)
    chances = [chance for one in scored for chance in one.chances]
    return list_measures(scored) | {
        "pairs": len(chances),
        "held_out_lists": len(lists),
        "by_flaw": {kind: _mean(hits) for kind, hits in sorted(by_flaw.items())},
        "by_gap": {gap: _mean(hits) for gap, hits in sorted(by_gap.items())},
        "reliability": metrics.reliability([1.0] * len(chances) + [0.0] * len(chances), chances + [1 - p for p in chances]),
        "intervals": bootstrap_intervals(list(seeds.values()), lambda drawn: list_measures([one for group in drawn for one in group])),
    }


# ------------------------------------------------------------------------------------------------ solutions


@dataclass(frozen=True)
class ScoredSolution:
    """A solution with the scores of its steps (none where it is too long), and what the measures take of it."""

    row: SteppedSolution
    scores: Sequence[float]
    labels: Sequence[float]  # of the judged steps up to and including the first error
    chances: Sequence[float]  # their scores
    first_error: int | None  # -1: all steps were judged right; None: not known


def score_solutions(model: ProcessRewardModel, solutions: Sequence[SteppedSolution], batch_size: int = 64) -> list[ScoredSolution]:
    """In order. A solution longer than the model may read has no scores and enters no measure of steps."""
    scored = []
    for row, result in zip(
        solutions, model.score([row.question for row in solutions], [row.steps for row in solutions], batch_size), strict=True
    ):
        if result.truncated:
            scored.append(ScoredSolution(row, (), (), (), None))
            continue
        kept = [
            (label, score)
            for label, score in zip(masked_after_first_error(list(row.labels)), result.scores, strict=True)
            if label is not None
        ]
        error = next((place for place, label in enumerate(row.labels) if label is not None and label < 0.5), None)
        if error is None and None not in row.labels:  # an error may be at a step that nobody judged
            error = -1
        scored.append(ScoredSolution(row, result.scores, [label for label, _ in kept], [score for _, score in kept], error))
    return scored


def step_measures(solutions: Sequence[ScoredSolution], threshold: float) -> dict[str, float]:
    """Numbers over all judged steps up to and including the first error; nan where a class is missing."""
    labels = [label for one in solutions for label in one.labels]
    chances = [chance for one in solutions for chance in one.chances]
    hard = [float(label >= 0.5) for label in labels]
    judged = [(one.first_error, one.scores) for one in solutions if one.first_error is not None]
    whole = [one for one in solutions if one.scores]
    results = [aggregate(one.scores) for one in whole]
    return {
        "step_auroc": metrics.auroc(hard, chances),
        "step_accuracy": float(np.mean((np.array(chances) >= 0.5) == (np.array(hard) > 0.5))) if hard else math.nan,
        "balanced_accuracy": metrics.balanced_accuracy(hard, chances),
        "auprc_errors": metrics.auprc([1 - label for label in hard], [-score for score in chances]),
        "ece": metrics.calibration_error(labels, chances),
        "brier": metrics.brier(labels, chances),
        "first_error_f1": metrics.first_error_f1([place for place, _ in judged], [scores for _, scores in judged], threshold),
        # Of r_A with characters and with steps: what it gives for mere length.
        "length_correlation": metrics.correlation(results, [sum(map(len, one.row.steps)) for one in whole]),
        "step_count_correlation": metrics.correlation(results, [len(one.scores) for one in whole]),
    }


def vote_outcomes(candidates: Sequence[Candidate], *, answered: bool = True) -> dict[str, list[float]]:
    """Of one problem: its pairs of a right and a wrong solution, 1 where their scores are in order, half for a tie; and where the file has
    answers (`answered`), whether majority, weighted vote and best-of over all its solutions are right."""
    good = [one.score for one in candidates if one.correct]
    bad = [one.score for one in candidates if not one.correct]
    outcomes = {"within_problem": [float(high > low) + 0.5 * (high == low) for high in good for low in bad]}
    answers, weights = [one.answer for one in candidates], [one.score for one in candidates]
    if answered:
        right = {one.answer for one in candidates if one.correct and one.answer is not None}
        outcomes["majority"] = [float(metrics.majority_vote(answers) in right)]
        outcomes["weighted_vote"] = [float(metrics.weighted_vote(answers, weights) in right)]
        outcomes["best_of"] = [float(metrics.best_of(answers, weights) in right)]
    return outcomes


def vote_measures(problems: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Means of the `vote_outcomes` of all problems.

    `within_problem`: share of pairs of a right and a wrong solution of one problem whose scores are in order. 0.5 is chance, whatever
    the AUROC: a model that only knows which problems are hard has a good AUROC, and is no help to a vote or to RL.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for outcomes in problems:
        for name, values in outcomes.items():
            found[name] += values
    return {name: _mean(values) for name, values in found.items()}


def evaluate_process(
    model: ProcessRewardModel, solutions: Sequence[SteppedSolution], *, threshold: float, batch_size: int = 64, probed: int = PROBED
) -> dict[str, Any]:
    """Step measures on steps up to and including the first error; first-error F1 at `threshold`, which another split has fixed.

    Where rows have `correct`, measures of votes; where several solutions of a problem have answers, their curves over N. `probed`: so many
    of the solutions are also scored after hack probes. `intervals`: 95 % bootstrap intervals over problems, by name.
    """
    scored = score_solutions(model, solutions, batch_size)
    labels = [label for one in scored for label in one.labels]
    chances = [chance for one in scored for chance in one.chances]
    problems: dict[str, list[ScoredSolution]] = defaultdict(list)
    depths: dict[int, list[ScoredSolution]] = defaultdict(list)
    for one in scored:
        problems[one.row.problem_id].append(one)
        if one.row.depth is not None:
            depths[one.row.depth].append(one)
    candidates = [group for rows in problems.values() if (group := _candidates(rows))]
    answered = any(one.answer is not None for group in candidates for one in group)
    grown = curves(candidates) if answered else None
    outcomes = [vote_outcomes(group, answered=answered) for group in candidates]

    def measures(groups: Sequence[Sequence[ScoredSolution]]) -> dict[str, float]:
        return step_measures([one for group in groups for one in group], threshold)

    return {
        **step_measures(scored, threshold),
        "threshold": threshold,
        "by_depth": {
            str(depth): metrics.auroc(
                [label for one in depths[depth] for label in one.labels], [chance for one in depths[depth] for chance in one.chances]
            )
            for depth in sorted(depths)
        },
        "steps": len(labels),
        "truncated": sum(not one.scores for one in scored),
        "held_out_solutions": len(solutions),
        **vote_measures(outcomes),
        "confusion": metrics.confusion([float(label >= 0.5) for label in labels], chances, threshold),
        "reliability": metrics.reliability(labels, chances),
        **({"curves": grown} if grown else {}),
        "probes": probe(model, [(one.row, aggregate(one.scores)) for one in scored[:probed] if one.scores], batch_size=batch_size),
        "intervals": bootstrap_intervals(list(problems.values()), measures) | bootstrap_intervals(outcomes, vote_measures),
    }


def fit_threshold(model: ProcessRewardModel, solutions: Sequence[SteppedSolution]) -> float:
    """The first-error threshold that is best on these solutions: any but those it will be measured on."""
    judged = [(one.first_error, one.scores) for one in score_solutions(model, solutions) if one.first_error is not None]
    return metrics.best_threshold([place for place, _ in judged], [scores for _, scores in judged])


def _candidates(rows: Sequence[ScoredSolution]) -> list[Candidate]:
    """Those whose answer is known to be right or wrong."""
    return [Candidate(one.row.correct, aggregate(one.scores), one.row.answer) for one in rows if one.row.correct is not None]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
