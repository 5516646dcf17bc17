"""28 and the measures, against hand tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_models import metrics
from reward_models.evaluate import vote_measures, vote_outcomes
from reward_models.records import Candidate


def test_auroc_and_auprc():
    assert metrics.auroc([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]) == 0.75
    assert metrics.auroc([1, 0], [0.5, 0.5]) == 0.5 and math.isnan(metrics.auroc([1, 1], [0.1, 0.2]))
    assert metrics.auprc([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx((1 + 2 / 3) / 2)


def test_calibration_and_brier():
    assert metrics.calibration_error([1, 0, 1, 0], [0.5] * 4, bins=1) == 0
    assert metrics.calibration_error([1, 1], [0.6, 0.8], bins=2) == pytest.approx(0.3)
    assert metrics.brier([1, 0], [0.8, 0.4]) == pytest.approx((0.04 + 0.16) / 2)
    assert metrics.balanced_accuracy([1, 1, 1, 0], [0.9, 0.9, 0.1, 0.2]) == pytest.approx((2 / 3 + 1) / 2)


def test_equal_probabilities_are_calibrated_alike_in_whatever_order_the_rows_stand():
    assert metrics.calibration_error([1.0] * 30 + [0.0] * 30, [0.5] * 60) == pytest.approx(0)
    labels, probabilities = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0] * 7, [0.2, 0.2, 0.6, 0.6, 0.6, 0.9] * 7
    rows = sorted(zip(labels, probabilities, strict=True))
    assert metrics.reliability(labels, probabilities) == metrics.reliability(*zip(*rows, strict=True))


def test_kendall():
    assert metrics.kendall_tau([0, 1, 2], [3.0, 2.0, 1.0]) == 1 and metrics.kendall_tau([0, 1, 1], [1.0, 2.0, 0.0]) == 0
    assert metrics.kendall_tau([0, 1, 2], [1.0, 1.0, 0.0]) == pytest.approx(2 / 3)  # what ties counts neither for nor against


def test_first_error_f1_as_processbench():
    truth, scores = [1, -1, 0, -1], [[0.9, 0.2], [0.9, 0.8], [0.9, 0.1], [0.9, 0.3]]
    assert metrics.first_error([0.9, 0.2, 0.1], 0.5) == 1 and metrics.first_error([0.9], 0.5) == -1
    assert metrics.first_error_f1(truth, scores, 0.5) == pytest.approx(0.5)
    assert metrics.best_threshold([1, -1], [[0.9, 0.7], [0.9, 0.9]]) in [value / 20 for value in range(15, 19)]
    assert math.isnan(metrics.first_error_f1([-1], [[0.9]], 0.5))


@pytest.mark.parametrize(
    "answers,weights,chosen",
    [
        (["a", "b", "b"], [0.9, 0.3, 0.4], "a"),
        (["a", "b", "b"], [0.6, 0.3, 0.3], "b"),  # a tie in weight goes by count
        (["a", "b"], [0.5, 0.5], "a"),  # then by first appearance
        ([None, "b"], [9.0, 0.1], "b"),
        ([None], [1.0], None),
        (["x"], [0.0], "x"),
    ],
)
def test_28_weighted_vote(answers, weights, chosen):
    assert metrics.weighted_vote(answers, weights) == chosen


def test_28_equal_weights_are_the_majority_and_best_of_takes_the_first_best():
    answers = ["a", "b", "b", None, "c"]
    assert metrics.weighted_vote(answers, [0.5] * 5) == metrics.majority_vote(answers) == "b"
    assert metrics.best_of(answers, [0.2, 0.9, 0.9, 1.0, 0.1]) == "b" and metrics.best_of([None], [1.0]) is None
    assert metrics.best_of(["a", "b"], [0.5, 0.5]) == "a"


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=9), st.floats(0.01, 1))
def test_28_equal_scores_are_the_plain_count(answers, weight):
    """Ties go to the first answer, as a plain count in order would have it."""
    votes = [answer for answer in answers if answer is not None]
    expected = max(dict.fromkeys(votes), key=votes.count) if votes else None
    assert metrics.weighted_vote(answers, [weight] * len(answers)) == metrics.majority_vote(answers) == expected


def test_within_a_problem_only_pairs_of_its_own_solutions_count():
    """Scores that know the problems alone, hard from easy, are at chance."""
    kinds = [("easy", True), ("easy", True), ("easy", False), ("hard", False), ("hard", True)]

    def within(scores):
        rows = [(problem, Candidate(right, score, str(n))) for n, ((problem, right), score) in enumerate(zip(kinds, scores, strict=False))]
        groups = [[one for problem, one in rows if problem == name] for name in ("easy", "hard")]
        return vote_measures([vote_outcomes(group) for group in groups])["within_problem"]

    assert within([0.9, 0.9, 0.9, 0.1, 0.1]) == 0.5
    assert within([0.9, 0.2, 0.5, 0.1, 0.3]) == pytest.approx(2 / 3)
    assert math.isnan(within([0.9, 0.9]))
