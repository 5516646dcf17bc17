"""Intervals against known values."""

from __future__ import annotations

import numpy as np
import pytest

from reward_models.statistics import mean_interval, paired_difference, pass_at_k, wilson


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
