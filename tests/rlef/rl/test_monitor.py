"""Alarms: what games the reward is told once, and goes on being known after a resume."""

from __future__ import annotations

import math

import pytest
import torch

from rlef.records import Problem
from rlef.rl.batch import RolloutBatch
from rlef.rl.guards import MOST_REPEATS, RULES
from rlef.rl.monitor import Alarms, loops, rollout_metrics
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion

START = {
    "rollout/length": 50.0, "rollout/steps": 4.0, "rollout/repeated_steps": 0.1, "rollout/looping": 0.1, "rollout/steps_after_answer": 0.0, "rollout/finished": 0.9,
    "rollout/no_answer": 0.1, "monitor/reward_gap": -0.05, "reward/masked": 0.0, "ppo/kl_per_token": 0.0, "ppo/entropy": 0.5, "rollout/logprob_gap": 1e-6, "optim/skipped_steps": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "name,changed",
    [
        ("length", {"rollout/length": 101.0}),
        ("length", {"rollout/length": 24.0}),
        ("step_count", {"rollout/steps": 8.1}),
        ("repeated_steps", {"rollout/repeated_steps": 0.7}),
        ("looping", {"rollout/looping": 0.21}),
        ("steps_after_answer", {"rollout/steps_after_answer": 0.6}),
        ("unfinished", {"rollout/finished": 0.4}),
        ("no_answer", {"rollout/no_answer": 0.4}),
        ("masked", {"reward/masked": 0.11}),
        ("reward_gap", {"monitor/reward_gap": 0.11}),
        ("kl", {"ppo/kl_per_token": -0.03}),
        ("kl", {"ppo/kl_per_token": 0.6}),
        ("collapse", {"ppo/entropy": 0.09}),
        ("sampler", {"rollout/logprob_gap": 0.2}),
        ("not_finite", {"optim/skipped_steps": 1.0}),
    ],
)
def test_each_alarm_is_raised_by_its_metric_alone_and_once(name, changed):
    alarms = Alarms()
    assert alarms.raised(1, START) == {} and alarms.raised(2, {key: value * 1.1 for key, value in START.items()}) == {}
    (told,) = alarms.raised(3, START | changed).items()
    assert told[0] == name and "iteration 3" in told[1] and RULES[name].metric in told[1]
    assert alarms.raised(4, START | changed) == {} and alarms.since == {name: 3}


def test_a_step_count_over_32_is_alarming_where_it_was_below_and_unknown_metrics_are_not():
    alarms = Alarms()
    alarms.raised(1, {"rollout/steps": 20.0, "monitor/reward_gap": math.nan})
    assert set(alarms.raised(2, {"rollout/steps": 33.0, "monitor/reward_gap": math.nan})) == {"step_count"}
    long = Alarms()
    assert long.raised(1, {"rollout/steps": 40.0}) == long.raised(2, {"rollout/steps": 45.0}) == {}


def test_answers_of_less_than_two_steps_are_alarming_where_they_had_more():
    alarms = Alarms()
    assert alarms.raised(1, {"rollout/steps": 2.2}) == {} and set(alarms.raised(2, {"rollout/steps": 1.9})) == {"step_count"}
    short = Alarms()
    assert short.raised(1, {"rollout/steps": 1.5}) == short.raised(2, {"rollout/steps": 1.4}) == {}


def test_a_resumed_run_keeps_its_start():
    before, after = Alarms(), Alarms()
    before.raised(1, START)
    before.raised(2, START | {"rollout/length": 200.0})
    after.load(before.state())
    assert after.raised(3, START | {"rollout/length": 200.0, "rollout/finished": 0.3}).keys() == {"unfinished"}
    assert after.since == {"length": 2, "unfinished": 3}


def test_answers_that_a_reward_model_could_not_read_or_find_are_counted():
    problem = Problem(id="0" * 16, question="q")
    samples = [
        Sample(Prompt(problem, (1,), None), row, Completion((2, 3), (0.0, 0.0), True), Score("", ("s",), (), (), 1.0, 0.0, why, "1", 0, 0))
        for row, why in enumerate(("too_long", "no_answer", "too_long", None))
    ]
    batch = RolloutBatch.of([(1,)] * 4, [(2, 3)] * 4, [(0.0, 0.0)] * 4, range(4))
    found = rollout_metrics(batch, samples, torch.zeros_like(batch.mask))
    assert found["rollout/too_long"] == 0.5 and found["rollout/no_answer"] == 0.25


def answered(row, length, *, steps=1, gold=None, extracted="1", r_a=0.5, repeated=0, after=0, masked=False, finished=True):
    score = Score("", ("s",) * steps, (), (), 0.5, r_a, None, extracted, after, repeated, masked)
    prompt = Prompt(Problem(id="0" * 16, question="q"), (1,), gold)
    return Sample(prompt, row, Completion((2,) * length, (0.0,) * length, finished), score)


def measured(samples):
    """As PPO has it: the mask of what was not judged is 0."""
    lengths = [len(sample.completion.tokens) for sample in samples]
    batch = RolloutBatch.of([(1,)] * len(samples), [(2,) * n for n in lengths], [(0.0,) * n for n in lengths], range(len(samples)))
    batch.values += 0.25
    batch.mask[torch.tensor([sample.score.masked for sample in samples])] = 0.0
    return rollout_metrics(batch, samples, torch.ones_like(batch.mask))


GUARDED = [
    answered(0, 2, steps=3, gold="1", r_a=0.9, repeated=1),
    answered(1, 4, steps=2, gold="2", r_a=0.7, after=3, finished=False),
    answered(2, 6, steps=1, gold="3", r_a=0.5, extracted="3"),
    answered(3, 8, steps=2, r_a=0.3),
]


def test_every_guard_is_measured():
    found = measured(GUARDED)
    assert found["rollout/length"] == 5 and found["rollout/steps"] == 2 and found["rollout/tokens"] == 20
    assert found["rollout/repeated_steps"] == 0.25 and found["rollout/steps_after_answer"] == 0.75 and found["rollout/finished"] == 0.75
    assert found["monitor/exact_match"] == pytest.approx(2 / 3)
    assert found["monitor/reward_gap"] == pytest.approx((0.9 + 0.7 + 0.5) / 3 - 2 / 3)
    assert found["reward/answer"] == pytest.approx(0.6) and found["reward/total"] == pytest.approx(0.3) and found["reward/masked"] == 0
    assert {rule.metric for rule in RULES.values()} - found.keys() == {"optim/skipped_steps"}  # which comes from the update


def test_an_answer_loops_where_it_says_the_same_three_tokens_too_often():
    once, fits = (7, 8, 9), MOST_REPEATS + 2  # equal tokens with MOST_REPEATS 3-grams
    assert not loops(()) and not loops((2,) * fits) and loops((2,) * (fits + 1))
    assert not loops((*once, 0) * MOST_REPEATS) and loops((*once, 0) * MOST_REPEATS + once)
    assert not loops(tuple(range(1000)) + (2, 2) * 3)
    assert measured([answered(0, fits), answered(1, fits + 1), answered(2, 40), answered(3, 3)])["rollout/looping"] == 0.5


def test_what_is_masked_counts_in_no_mean():
    odd = answered(4, 30, steps=40, gold="7", r_a=0.0, repeated=9, after=9, masked=True, finished=False)
    assert measured([*GUARDED, odd]) == pytest.approx(measured(GUARDED) | {"reward/masked": 0.2}, nan_ok=True)


def test_where_nothing_was_judged_no_mean_is_made_up_and_no_other_alarm_raised():
    found = measured([answered(row, 3, masked=True) for row in range(4)])
    assert found["reward/masked"] == 1 and found["rollout/tokens"] == 0
    assert all(math.isnan(value) for name, value in found.items() if name not in ("reward/masked", "rollout/tokens"))
    alarms = Alarms()
    alarms.raised(1, START)
    assert set(alarms.raised(2, found)) == {"masked"}
