"""Inline charts leave gaps and stay inside."""

from __future__ import annotations

from reward_models.charts import line_chart
from rlef.views.charts import interval_chart


def test_charts_leave_gaps_for_what_is_not_a_number():
    assert line_chart("t", {"a": [(1, float("nan")), (2, 1.0)]}, "step") == ""
    assert "nan" not in line_chart("t", {"a": [(1, float("nan")), (2, 1.0), (3, 1.0)]}, "step")


def test_intervals_below_zero_stay_inside_the_chart():
    assert interval_chart("t", {}) == ""
    chart = interval_chart("t", {"<b>": (-0.1, -0.2, -0.05)})
    assert "&lt;b&gt;" in chart and "-20%" in chart and ">0%" in chart and 'x1="-' not in chart
