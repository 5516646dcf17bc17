"""Tables for people: step scores in colour, nothing of an answer becomes markup, the worst misjudgements first."""

from __future__ import annotations

import pytest

from rlef.records import Problem
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rl.shown import COLUMNS, coloured, disagreements, log_samples
from rlef.rollout.base import Completion
from rlef.tracking import Tracker


def sample(r_a: float, *, gold: str | None = "3", answer: str = "3", masked: bool = False) -> Sample:
    problem = Problem(id="a", question="1+2?")
    score = Score(
        text="1+2=3\n#### 3", steps=("1+2=3", "#### 3"), step_scores=(r_a, 0.9), slots=(3, 6), instruction=0.5, answer=r_a, zeroed=None,
        extracted=answer, steps_after_answer=0, repeated_steps=0, masked=masked,
    )  # fmt: skip
    return Sample(Prompt(problem, (1,), gold), 0, Completion((1, 2), (0.0, 0.0), True), score)


def test_a_step_is_as_red_or_green_as_its_score():
    cell = coloured(["a", "b", "c"], [0.0, 0.5, 1.0])
    assert [cell.markup.count(f"hsl({hue},") for hue in (0, 60, 120)] == [1, 1, 1]
    assert cell.plain == "a [0.00]\nb [0.50]\nc [1.00]"


def test_what_a_model_wrote_is_no_markup():
    cell = coloured(['<script>alert("x")</script>', "1 < 2 & 'b'"], [0.5, 0.5])
    assert (
        "<script" not in cell.markup
        and "&lt;script&gt;alert(&quot;x&quot;)" in cell.markup
        and "1 &lt; 2 &amp; &#x27;b&#x27;" in cell.markup
    )
    assert "<script>" in cell.plain


def test_the_score_of_a_whole_answer_stands_on_its_last_step():
    assert coloured(["a", "b"], [0.25]).plain == "a\nb [0.25]" and coloured(["a"], []).plain == "a"


def test_disagreements_are_those_on_the_wrong_side_the_worst_first():
    right_low, wrong_high, worst = sample(0.3), sample(0.8, answer="4"), sample(0.95, answer=None)
    fine = [sample(0.9), sample(0.2, answer="4"), sample(0.1, gold=None), sample(0.1, masked=True)]
    found = disagreements([right_low, *fine, wrong_high, worst])
    assert [one for _, one in found] == [worst, wrong_high, right_low]
    assert [error for error, _ in found] == pytest.approx([0.95, 0.8, 0.7])
    assert len(disagreements([wrong_high] * 9, most=5)) == 5


def test_both_tables_are_logged_and_none_where_there_is_nothing():
    told = {}

    class Service:
        have = 0

        def table(self, name, columns, rows, step):
            told[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    tracker = Tracker("ppo", None, [Service()], quiet=True)  # type: ignore[list-item]
    log_samples(tracker, [])
    assert told == {}
    log_samples(tracker, [sample(0.9), sample(0.8, answer="4")])
    assert [row["right"] for row in told["rollouts"]] == [True, False] and set(told["rollouts"][0]) == set(COLUMNS)
    assert [(row["error"], row["gold"], row["total"]) for row in told["disagreements"]] == [(0.8, "3", 0.4)]
