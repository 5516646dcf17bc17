"""Sampled answers: which go into the page, and which of them are right."""

from __future__ import annotations

import pytest

from rlef.records import Problem, Rollout
from rlef.report.rollouts import CHARACTERS, affordable, is_right, spread


def sample(problem, number):
    return Rollout(
        problem_id=problem, iteration=1, sample=number, question="q", text="t", step_scores=(), instruction=0, answer=0, total=0, length=1,
        finished=True,
    )  # fmt: skip


def test_each_problem_is_shown_once_before_one_is_shown_twice_and_its_answers_stand_together():
    rows = [sample(problem, number) for problem in "abc" for number in range(3)]
    assert [(row.problem_id, row.sample) for row in spread(rows, 5)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)]
    assert len(spread(rows, 100)) == 9


@pytest.mark.parametrize(
    "answer,gold,right",
    [
        ("10", "10", True),
        ("10.0", "10", True),
        ("11", "10", False),
        (None, "10", False),
        ("x+1", "x+1", True),
        ("1+x", "x+1", None),  # only the slow grader could tell
        ("10", None, None),
    ],
)
def test_right_wrong_or_not_known(answer, gold, right):
    assert is_right(answer, Problem(id="p", question="q", answer=gold)) is right
    assert is_right(answer, None) is None


def test_long_answers_are_fewer_and_none_is_longer_than_it_is_shown():
    assert affordable([1, 2, 3], [CHARACTERS, 10, 10]) == [1, 2, 3]  # cut to 4,000
    assert affordable(range(1000), [3000] * 1000) == list(range(CHARACTERS // 3000))
