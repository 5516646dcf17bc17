"""Curves over N against enumeration of all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models import curves as module
from reward_models.curves import best_of_n, curves, vote_accuracy
from reward_models.metrics import best_of, majority_vote, weighted_vote
from reward_models.records import Candidate

ANSWERS = st.sampled_from(["a", "b", "c", None])
GROUPS = st.lists(st.tuples(ANSWERS, st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.9])), min_size=1, max_size=6)


def candidates(rows, right="a"):
    return [Candidate(answer == right, score, answer) for answer, score in rows]


@settings(deadline=None, max_examples=40)
@given(GROUPS)
def test_all_subsets_give_what_the_formulas_say(rows):
    group = candidates(rows)
    for size in range(1, len(group) + 1):
        best, votes, proxies = [], [], []
        for subset in itertools.combinations(group, size):
            answers, scores = [one.answer for one in subset], [one.score for one in subset]
            best.append(best_of(answers, scores) == "a")
            votes.append((majority_vote(answers) == "a", weighted_vote(answers, scores) == "a"))
            proxies.append(max((one.score for one in subset if one.answer is not None), default=0.0))
        assert best_of_n(group, size) == pytest.approx((np.mean(best), np.mean(proxies)))
        assert vote_accuracy(group, size) == pytest.approx(tuple(np.mean(votes, axis=0)))


def test_a_right_solution_without_an_answer_is_right_in_no_curve():
    row = curves([[Candidate(True, 0.9), Candidate(False, 0.5, "b")]])["rows"][-1]
    assert row["n"] == 2 and row["pass"]["mean"] == row["best_of"]["mean"] == row["majority"]["mean"] == 0


def test_drawn_subsets_are_near_all_of_them(monkeypatch):
    rng = np.random.default_rng(0)
    group = candidates([("ab"[int(rng.random() < 0.6)], float(rng.random())) for _ in range(11)])
    exact = (monkeypatch.setattr(module, "SUBSETS", 500), vote_accuracy(group, 5))[1]  # 462 subsets
    monkeypatch.setattr(module, "SUBSETS", 400)
    assert vote_accuracy(group, 5) == vote_accuracy(group, 5) == pytest.approx(exact, abs=0.08)
    assert vote_accuracy(group, 5) != exact


def test_curves_by_value():
    groups = [candidates([("a", 0.9), ("b", 0.1), ("b", 0.2), ("b", 0.3)]), candidates([("b", 0.8), ("a", 0.2), ("b", 0.1), (None, 1.0)])]
    found = curves(groups)
    assert [row["n"] for row in found["rows"]] == [1, 2, 4] and found["problems"] == 2 and found["left_out"] == 0
    by_n = {row["n"]: {key: value["mean"] for key, value in row.items() if isinstance(value, dict)} for row in found["rows"]}
    assert by_n[1] == pytest.approx(
        {
            "pass": 0.25,
            "majority": 0.25,
            "weighted_vote": 0.25,
            "best_of": 0.25,
            "weighted_vote_minus_majority": 0,
            "best_of_minus_majority": 0,
        }
    )
    assert by_n[4]["pass"] == 1 and by_n[4]["majority"] == 0 and by_n[4]["best_of"] == 0.5 and by_n[4]["weighted_vote"] == 0.5
    assert by_n[2]["pass"] == 0.5 and by_n[4]["best_of_minus_majority"] == 0.5
    assert found["rows"][2]["proxy"] == pytest.approx((0.9 + 0.8) / 2) and found["rows"][2]["kl"] == pytest.approx(math.log(4) - 0.75)
    low, high = found["rows"][2]["best_of"]["ci95"]
    assert low == 0 and high == 1  # two problems say nothing


def test_a_score_that_turns_against_the_truth_shows_as_the_best_scored_grow():
    group = candidates([("a", 0.5)] * 6 + [("b", 0.2)] * 5 + [("b", 0.99)])
    rows = curves([group] * 3)["rows"]
    assert rows[0]["best_of"]["mean"] == pytest.approx(0.5) and rows[1]["best_of"]["mean"] > 0.6 > rows[-1]["best_of"]["mean"]
    assert all(one["proxy"] < two["proxy"] for one, two in itertools.pairwise(rows))


def test_problems_with_few_solutions_are_left_out_and_counted():
    one, four = candidates([("a", 0.5)]), candidates([("a", 0.5)] * 4)
    assert curves([]) is curves([one, one]) is None
    found = curves([one, four, four])
    assert found["left_out"] == 1 and [row["n"] for row in found["rows"]] == [1, 2, 4]
