"""Labels at a threshold, by value, from each kind of row."""

from __future__ import annotations

import pytest

from reward_models.errors import UserError
from reward_models.labels import at_threshold, calculator_labels, consensus_labels, first_error_labels, hard_labels, relabelled
from reward_models.records import SteppedSolution

RATES = (0.75, 0.5, None, 0.0)


def row(**fields):
    known = {"problem_id": "p", "question": "q", "steps": list("abcd"), "labels": [None] * 4, "labeller": "monte_carlo", "rates": RATES}
    return SteppedSolution(**known | fields)


def test_pieces_by_value():
    assert hard_labels(RATES, 0.5) == [1.0, 0.0, None, 0.0]
    assert calculator_labels([0.0, 1.0, None], [0.75, 0.5, None]) == [0.0, 0.5, None]
    assert consensus_labels([1.0, 1.0, 0.0, None], [1.0, 0.0, None, None]) == [1.0, None, None, None]
    assert first_error_labels([None, 0.5, 0.25, 0.0], 0.0) == [1.0, 1.0, 1.0, 0.0]
    assert first_error_labels([None, 0.5, 0.25, 0.0], 0.3) == [1.0, 1.0, 0.0, None]
    assert first_error_labels([None, 0.5, 0.25, 0.0], 0.6) == [None] * 4  # which of the first two is wrong was not measured
    assert first_error_labels([0.2, None, None, 0.0], 0.3) == [0.0, None, None, None]
    assert first_error_labels([None, None, None, 1.0], 0.3) == [1.0] * 4


def test_a_row_is_labelled_anew_from_all_verdicts_that_it_keeps():
    assert at_threshold(row(), 0.6).labels == (1.0, 0.0, None, 0.0)
    assert at_threshold(row(), 0.4).labels == (1.0, 1.0, None, 0.0)
    calculated = row(labeller="calculator+monte_carlo", equations=(0.0, 1.0, None, None))
    assert at_threshold(calculated, 0.4).labels == (0.0, 1.0, None, 0.0)
    agreed = row(labeller="monte_carlo and judge", judged=(1.0, 0.0, None, None))
    assert at_threshold(agreed, 0.4).labels == (1.0, None, None, None) and at_threshold(agreed, 0.6).labels == (1.0, 0.0, None, None)
    bisected = row(labeller="bisection and judge", rates=(None, 0.5, 0.25, 0.0), judged=(1.0, 1.0, 0.0, None))
    assert at_threshold(bisected, 0.0).labels == (1.0, 1.0, None, None) and at_threshold(bisected, 0.3).labels == (1.0, 1.0, 0.0, None)
    plain = row(rates=None, labels=(1.0, 0.5, 0.0, None))
    assert at_threshold(plain, 0.4) is plain
    assert at_threshold(agreed, 0.6).model_dump(exclude={"labels"}) == agreed.model_dump(exclude={"labels"})


def test_no_threshold_leaves_labels_alone_and_one_without_rates_is_a_mistake():
    rows = [row(labels=(0.75, 0.5, None, 0.0)), row(rates=None)]
    assert relabelled(rows, None) == rows
    assert [one.labels for one in relabelled(rows, 0.5)] == [(1.0, 0.0, None, 0.0), (None,) * 4]
    with pytest.raises(UserError, match="no row has the rates"):
        relabelled(rows[1:], 0.5)


@pytest.mark.parametrize("name", ["rates", "equations", "judged"])
def test_every_verdict_has_one_entry_a_step_in_0_to_1(name):
    with pytest.raises(ValueError, match=f"4 steps but 1 {name}"):
        row(**{name: (1.0,)})
    with pytest.raises(ValueError, match="must lie in"):
        row(**{name: (1.5, None, None, None)})
