"""Labels at a threshold, by value, from each kind of row."""

from __future__ import annotations

import pytest

from reward_models.config import ProcessModelConfig
from reward_models.errors import UserError
from reward_models.labels import (
    at_threshold,
    by_outcome,
    calculator_labels,
    consensus_labels,
    decided,
    first_error_labels,
    hard_labels,
    made_ready,
    relabelled,
)
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


def test_neutral_steps_are_what_the_settings_say():
    judged = [1.0, 0.5, None, 0.0, 0.25]
    assert decided(judged, "keep") == judged
    assert decided(judged, "right") == [1.0, 1.0, None, 0.0, 1.0]
    assert decided(judged, "wrong") == [1.0, 0.0, None, 0.0, 0.0]
    assert decided(judged, "mask") == [1.0, None, None, 0.0, None]
    human, measured = row(rates=None, labels=(1.0, 0.5, None, 0.0)), row(labels=(0.75, 0.5, None, 0.0))
    assert made_ready([human, measured], ProcessModelConfig()) == [human, measured]
    ready = made_ready([human, measured], ProcessModelConfig(neutral="wrong"))
    assert ready[0].labels == (1.0, 0.0, None, 0.0) and ready[1] is measured  # half of its completions is no neutral verdict
    ready = made_ready([human, measured], ProcessModelConfig(threshold=0.4))
    assert ready == [human, at_threshold(measured, 0.4)] and made_ready(ready, ProcessModelConfig(threshold=0.4)) == ready


def test_by_outcome_a_solution_is_one_step_and_rows_without_outcome_are_not_judged():
    rows = [row(correct=True), row(correct=False), row(correct=None)]
    ready = made_ready(rows, ProcessModelConfig(outcome=True))
    assert [one.labels for one in ready] == [(1.0,), (0.0,), (None,)] and ready == [by_outcome(one) for one in rows]
    assert all(one.steps == ("a\nb\nc\nd",) and one.rates is None for one in ready)
    assert type(ready[0]).model_validate(ready[0].model_dump()) == ready[0]
    with pytest.raises(UserError, match="no row says whether"):
        made_ready(rows[2:], ProcessModelConfig(outcome=True))
    for setting in ({"threshold": 0.5}, {"neutral": "mask"}):
        with pytest.raises(ValueError, match="leave out threshold and neutral"):
            ProcessModelConfig(outcome=True, **setting)
