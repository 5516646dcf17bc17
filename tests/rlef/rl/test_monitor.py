"""Alarms: what games the reward is told once, and goes on being known after a resume."""

from __future__ import annotations

import math

import pytest
import torch

from rlef.records import Problem
from rlef.rl.batch import RolloutBatch
from rlef.rl.monitor import RULES, Alarms, rollout_metrics
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion

START = {
    "rollout/length": 50.0, "rollout/steps": 4.0, "rollout/repeated_steps": 0.1, "rollout/steps_after_answer": 0.0, "rollout/finished": 0.9,
    "rollout/no_answer": 0.1, "monitor/reward_gap": -0.05, "ppo/kl_per_token": 0.0, "rollout/logprob_gap": 1e-6, "optim/skipped_steps": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "name,changed",
    [
        ("length", {"rollout/length": 101.0}),
        ("length", {"rollout/length": 24.0}),
        ("step_count", {"rollout/steps": 8.1}),
        ("repeated_steps", {"rollout/repeated_steps": 0.7}),
        ("steps_after_answer", {"rollout/steps_after_answer": 0.6}),
        ("unfinished", {"rollout/finished": 0.4}),
        ("no_answer", {"rollout/no_answer": 0.4}),
        ("reward_gap", {"monitor/reward_gap": 0.11}),
        ("kl", {"ppo/kl_per_token": -0.03}),
        ("kl", {"ppo/kl_per_token": 0.6}),
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
