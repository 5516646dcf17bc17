"""Advantages from the group alone, by value; what connects RLOO, Dr. GRPO and GRPO; the process form."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef.rl import groups
from rlef.rl.groups import LEAST_DEVIATION, deviation, relative, rewards_of, to_come
from rlef.rl.reward import Score


def score(steps, slots, *, zeroed=None):
    answer = 0.0 if zeroed else min(steps, default=0.0)
    return Score("", ("s",) * len(slots), tuple(steps), tuple(slots), 0.5, answer, zeroed, "1", 0, 0)


def test_an_answer_against_its_group():
    group = [[0.2], [0.4], [0.9]]
    assert relative(group, baseline="group") == [[pytest.approx(-0.3)], [pytest.approx(-0.1)], [pytest.approx(0.4)]]
    assert relative(group, baseline="rloo") == [[pytest.approx(0.2 - 0.65)], [pytest.approx(0.4 - 0.55)], [pytest.approx(0.9 - 0.3)]]
    spread = statistics.stdev([0.2, 0.4, 0.9])
    assert deviation([0.2, 0.4, 0.9]) == spread and deviation([0.7]) == 0.0
    assert relative(group, baseline="group", divide_by=spread)[2] == [pytest.approx(0.4 / (spread + LEAST_DEVIATION))]
    assert relative([[0.7], [0.7]], baseline="group", divide_by=0.0) == [[0.0], [0.0]]  # equal rewards teach nothing


def test_an_answer_that_was_not_judged_is_in_no_baseline():
    unjudged = Score("", (), (), (), 0.0, 0.0, None, "1", 0, 0, masked=True)
    assert rewards_of(unjudged, 3, "outcome") == rewards_of(unjudged, 3, "process") == ([], [])
    for baseline in ("group", "rloo"):
        assert relative([[0.2], [], [0.4]], baseline=baseline) == [
            relative([[0.2], [0.4]], baseline=baseline)[0],
            [],
            [pytest.approx(0.1 if baseline == "group" else 0.2)],
        ]
        assert relative([[0.2], []], baseline=baseline) == [[0.0], []] and relative([[], []], baseline=baseline) == [[], []]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_rloo_is_the_mean_taken_off_times_n_over_n_minus_1(rewards):
    group, n = [[reward] for reward in rewards], len(rewards)
    for (ours,), (plain,) in zip(relative(group, baseline="rloo"), relative(group, baseline="group"), strict=True):
        assert ours == pytest.approx(n / (n - 1) * plain, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.1, 1))
def test_r_i_weights_a_prompt_unless_the_deviation_divides_it_away(rewards, instruction):
    """Times r_I all rewards of a group: so are Dr. GRPO's advantages; GRPO's are what they were, but for the least deviation."""
    group, weighted = [[one] for one in rewards], [[instruction * one] for one in rewards]
    plain = relative(group, baseline="group")
    assert [one for (one,) in relative(weighted, baseline="group")] == pytest.approx([instruction * one for (one,) in plain], abs=1e-12)
    spread = deviation(rewards)
    if spread > 1e-3:
        assert deviation([one for (one,) in weighted]) == pytest.approx(instruction * spread)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "LEAST_DEVIATION", 0.0)
            scaled = relative(weighted, baseline="group", divide_by=instruction * spread)
        assert [one for (one,) in scaled] == pytest.approx([one / spread for (one,) in plain], rel=1e-9, abs=1e-9)


def test_24_the_least_deviation_shrinks_what_hardly_differs():
    group = [[0.05 * (0.5 + place)] for place in (-0.12, 0.0, 0.12)]  # a spread of 0.006 under a low r_I
    assert deviation([one for (one,) in group]) == pytest.approx(0.006)
    assert relative(group, baseline="group", divide_by=0.006)[2] == [pytest.approx(0.006 / 0.0061)]


def test_process_form_by_hand():
    """Two answers of two steps and one: the mean is over all three step rewards; a token has the sum of what is still to come."""
    first, second = score([0.9, 0.3], [1, 2]), score([0.6], [0])
    paid, slots = rewards_of(first, 4, "process")
    assert paid == [pytest.approx(0.45), pytest.approx(0.15)] and slots == [1, 3]  # the last step's stands on the last token
    group = [paid, rewards_of(second, 2, "process")[0]]
    assert relative(group, baseline="group") == [[pytest.approx(0.15), pytest.approx(-0.15)], [pytest.approx(0.0)]]
    assert relative(group, baseline="rloo") == [[pytest.approx(0.15), pytest.approx(-0.15)], [pytest.approx(0.0)]]
    scaled = relative(group, baseline="group", divide_by=deviation([0.45, 0.15, 0.3]))
    assert scaled[0] == [pytest.approx(1, rel=1e-3), pytest.approx(-1, rel=1e-3)]
    assert to_come([0.4, -0.1], slots, 4) == [pytest.approx(0.3), pytest.approx(0.3), -0.1, -0.1]
    assert to_come([0.4, -0.1], [1, 1], 3) == [pytest.approx(0.3), pytest.approx(0.3), 0.0]  # two steps closed by one token


def test_leave_one_out_leaves_all_steps_of_the_answer_out():
    assert relative([[1.0, 0.0], [0.2, 0.4], [0.6]], baseline="rloo")[0] == [pytest.approx(0.6), pytest.approx(-0.4)]


def test_outcome_form_is_one_advantage_for_all_tokens():
    one = score([0.9, 0.3], [1, 2])
    assert rewards_of(one, 4, "outcome") == ([pytest.approx(0.5 * 0.3)], [3])
    assert to_come([0.7], [3], 4) == [0.7] * 4


@pytest.mark.parametrize("zeroed,steps", [("unfinished", [0.9, 0.8]), ("no_answer", [0.9]), ("too_long", []), ("no_answer", [])])
def test_good_steps_pay_nothing_in_an_answer_worth_nothing(zeroed, steps):
    one = score(steps, range(len(steps)), zeroed=zeroed)
    for form in ("outcome", "process"):
        paid, slots = rewards_of(one, 5, form)
        assert set(paid) == {0.0} and slots[-1] == 4 and len(paid) == len(slots)
