"""Intervals against known values."""

from __future__ import annotations

import numpy as np
import pytest

from reward_models.statistics import mean_interval, over_seeds, paired_difference, pass_at_k, t_interval, wilson


def test_wilson():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4) and wilson(0, 0) == (0.0, 1.0)


def test_pass_at_k():
    assert pass_at_k(8, 0, 8) == 0 and pass_at_k(8, 1, 8) == 1 and pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)


def test_bootstrap_matches_the_normal_interval_and_pairs_count():
    rng = np.random.default_rng(0)
    first = rng.random(2000) < 0.6
    second = np.where(rng.random(2000) < 0.9, first, ~first)
    found = paired_difference(first, second)
    difference = first.astype(float) - second
    half = 1.96 * difference.std() / np.sqrt(2000)
    assert found["mean"] == pytest.approx(difference.mean())
    assert found["ci95"] == pytest.approx([difference.mean() - half, difference.mean() + half], abs=2e-3)
    assert paired_difference(first, first) == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert mean_interval([0.5]) == {"mean": 0.5, "ci95": [0.5, 0.5]}


def test_the_t_interval_of_known_values():
    # mean 3, s = sqrt(2.5), half = 2.776 * 0.70711
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.96293, 3 + 1.96293), abs=1e-4)
    assert t_interval([0.0, 1.0]) == pytest.approx((0.5 - 6.353, 0.5 + 6.353)) and np.isnan(t_interval([0.5])).all()
    many = np.random.default_rng(0).normal(size=61)
    assert t_interval(many)[1] - many.mean() == pytest.approx(2.0003 * many.std(ddof=1) / np.sqrt(61), rel=2e-3)


def test_problems_and_seeds_make_two_intervals():
    """Seeds that differ much, each measured on many problems: sure for these models, unsure for another."""
    rng = np.random.default_rng(1)
    seeds = [rng.normal(mean, 0.1, size=count) for mean, count in ((0.0, 400), (0.2, 100), (0.4, 400))]
    found = over_seeds(seeds)
    assert found["by_seed"] == pytest.approx([0.0, 0.2, 0.4], abs=0.03) and found["mean"] == pytest.approx(0.2, abs=0.02)
    half = 1.96 * 0.1 * np.sqrt(1 / 400 + 1 / 100 + 1 / 400) / 3  # a seed weighs the same whatever its problems
    assert found["ci95"] == pytest.approx([found["mean"] - half, found["mean"] + half], abs=2e-3)
    assert found["ci95_seeds"][0] < 0 < 0.6 < found["ci95_seeds"][1]
    assert over_seeds([[1.0, 1.0]])["ci95"] == [1.0, 1.0] and np.isnan(over_seeds([[1.0]])["ci95_seeds"]).all()
