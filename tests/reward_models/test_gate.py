"""What a gate takes, and what it says where a metric is below it."""

from __future__ import annotations

import math

import pytest

from reward_models.gate import failure, mistakes, unmet

RESULT = {
    "step_auroc": 0.712, "first_error_f1": 0.6, "ece": 0.2, "within_problem": None, "best_of": math.nan, "held_out_solutions": 118,
    "intervals": {"step_auroc": [0.671, 0.75], "first_error_f1": [None, None]},
}  # fmt: skip


def test_a_gate_is_passed_at_its_value_and_not_below_it():
    assert failure("prm", {"step_auroc": 0.712, "first_error_f1": 0.5, "ece": 0.2}, RESULT) is None and failure("prm", {}, {}) is None
    assert unmet("prm", {"step_auroc": 0.72, "first_error_f1": 0.61, "ece": 0.1}, RESULT) == [
        "step_auroc 0.712 (95 %: 0.671 to 0.750), required at least 0.72",
        "first_error_f1 0.600, required at least 0.61",
        "ece 0.200, required at most 0.1",
    ]
    assert failure("prm", {"step_auroc": 0.8}, RESULT) == (
        "below its gate on 118 held-out solutions\n  - step_auroc 0.712 (95 %: 0.671 to 0.750), required at least 0.8"
    )


@pytest.mark.parametrize("name", ["within_problem", "best_of", "weighted_vote"])
def test_what_could_not_be_measured_passes_no_gate(name):
    assert unmet("prm", {name: 0.0}, RESULT) == [f"{name} could not be measured on these rows, required at least 0"]


@pytest.mark.parametrize(
    "kind,require,told",
    [
        ("prm", {"step_aurok": 0.8}, "step_aurok: no metric of an prm; did you mean `step_auroc`?"),
        ("irm", {"step_auroc": 0.8}, "step_auroc: no metric of an irm; known: pair_accuracy"),
        ("prm", {"step_auroc": 80.0}, "step_auroc: 80 is not in 0..1"),
        ("prm", {"step_auroc": math.nan}, "is not in 0..1"),
        ("irm", {"kendall_tau": -1.1}, "not in -1..1"),
    ],
)
def test_mistakes(kind, require, told):
    (line,) = mistakes(kind, require)
    assert told in line
    assert mistakes("prm", {"step_auroc": 0.8, "ece": 0.1}) == mistakes("irm", {"kendall_tau": -0.5}) == []
