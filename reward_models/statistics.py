"""Intervals for what evaluation counts: Wilson for a share, bootstrap over problems, t over seeds; and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

G = TypeVar("G")
T_QUANTILES = (  # 97.5 % quantiles of Student's t for 1, 2, .. degrees of freedom
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
)  # fmt: skip


def wilson(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) for no observation."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k of `samples` drawn without replacement hold a right one (Chen et al. 2021, arXiv 2107.03374)."""
    if samples - right < k:
        return 1.0
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0, draws: int = 4000) -> dict[str, object]:
    """Mean of first - second over the same problems and its 95 % bootstrap interval."""
    return mean_interval(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), seed=seed, draws=draws)


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = 4000) -> dict[str, object]:
    """Mean and 95 % percentile bootstrap interval over the values."""
    data = np.asarray(values, dtype=float)
    if not len(data):
        return {"mean": math.nan, "ci95": [math.nan, math.nan]}
    rng = np.random.default_rng(seed)
    means = np.concatenate([data[rng.integers(0, len(data), (200, len(data)))].mean(1) for _ in range(max(1, draws // 200))])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(data.mean()), "ci95": [float(low), float(high)]}


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of few values that are normally distributed, as means of seeds are; nan for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else 1.96 + 2.5 / freedom
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def over_seeds(seeds: Sequence[Sequence[float] | np.ndarray], *, seed: int = 0, draws: int = 4000) -> dict[str, Any]:
    """The mean over seeds of a difference, and two 95 % intervals that say different things.

    `seeds` holds each seed's differences, one a problem. `ci95`: the bootstrap over problems, drawn anew within each seed: how sure the
    figure is for these trained models. `ci95_seeds`: the t-interval over the seeds' means: how sure for a model trained anew.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(draws)
    for values in seeds:
        data = np.asarray(values, dtype=float)
        drawn += np.concatenate([data[rng.integers(0, len(data), (200, len(data)))].mean(1) for _ in range(-(-draws // 200))])[:draws]
    means = [float(np.mean(values)) for values in seeds]
    low, high = np.percentile(drawn / len(seeds), [2.5, 97.5])
    return {"mean": float(np.mean(means)), "ci95": [float(low), float(high)], "ci95_seeds": list(t_interval(means)), "by_seed": means}


def bootstrap_intervals(
    groups: Sequence[G], measure: Callable[[Sequence[G]], Mapping[str, float]], *, seed: int = 0, draws: int = 200
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of all numbers that `measure` takes of groups, by name.

    Whole groups are drawn (all rows of a problem or seed): rows of one are alike, and drawn one by one the interval would be too narrow.
    Draws in which a number is nan are left out of its interval; without any it is [nan, nan].
    """
    rng = np.random.default_rng(seed)
    taken = [measure([groups[place] for place in rng.integers(0, len(groups), len(groups))]) for _ in range(draws if groups else 0)]
    intervals = {}
    for name in measure(groups):
        values = [one[name] for one in taken if not math.isnan(one.get(name, math.nan))]
        low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)
        intervals[name] = [float(low), float(high)]
    return intervals


def in_points(difference: Mapping[str, Any]) -> tuple[str, str, str]:
    """Mean and both ends of a `mean_interval` of shares, as signed percentage points."""
    mean, low, high = (f"{100 * value:+.1f}" for value in (difference["mean"], *difference["ci95"]))
    return mean, low, high
