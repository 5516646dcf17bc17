"""Gates: the values that held-out metrics must reach before a reward model may be used. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reward_models.nearest import meant

# Metrics of `reward_models.evaluate` that a gate may name: those that must be at least, and those that may be at most so much.
OF_STEPS = (
    "step_auroc",
    "step_accuracy",
    "balanced_accuracy",
    "auprc_errors",
    "first_error_f1",
    "within_problem",
    "weighted_vote",
    "best_of",
)
LEAST: dict[str, tuple[str, ...]] = {
    "irm": ("pair_accuracy", "cross_seed_accuracy", "length_matched_accuracy", "kendall_tau"),
    "prm": OF_STEPS,
    "orm": OF_STEPS,
}
MOST: dict[str, tuple[str, ...]] = {"irm": ("ece",), "prm": ("ece", "brier"), "orm": ("ece", "brier")}
ROWS = {"irm": "lists", "prm": "solutions", "orm": "solutions"}


def mistakes(kind: str, require: Mapping[str, float]) -> list[str]:
    """`name: what is wrong` of each entry that no evaluation of this kind ("irm", "prm", "orm") could be held against."""
    known, wrong = [*LEAST[kind], *MOST[kind]], []
    for name, value in require.items():
        low = -1.0 if name == "kendall_tau" else 0.0
        if name not in known:
            wrong.append(f"{name}: no metric of an {kind}{meant(name, known) or '; known: ' + ', '.join(known)}")
        elif not low <= value <= 1:
            wrong.append(f"{name}: {value:g} is not in {low:g}..1")
    return wrong


def unmet(kind: str, require: Mapping[str, float], result: Mapping[str, Any]) -> list[str]:
    """A line for each required metric that `result` of an evaluation does not reach: measured, its 95 % interval, required.

    A metric that could not be measured (the rows lack a class, or answers) is not reached.
    """
    lines = []
    for name, bound in require.items():
        value = result.get(name)
        most = name in MOST[kind]
        limit = f"required at {'most' if most else 'least'} {bound:g}"
        if value is None or not math.isfinite(value):
            lines.append(f"{name} could not be measured on these rows, {limit}")
        elif value > bound if most else value < bound:
            low, high = (result.get("intervals") or {}).get(name) or (None, None)
            interval = "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"
            lines.append(f"{name} {value:.3f}{interval}, {limit}")
    return lines


def failure(kind: str, require: Mapping[str, float], result: Mapping[str, Any]) -> str | None:
    """All that is not reached, and on how many held-out rows; None where the gate is passed."""
    lines = unmet(kind, require, result)
    if not lines:
        return None
    return f"below its gate on {result[f'held_out_{ROWS[kind]}']} held-out {ROWS[kind]}\n" + "\n".join(f"  - {line}" for line in lines)
