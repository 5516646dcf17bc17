"""Plots: what is drawn of what was measured, in colours that the page can change."""

from __future__ import annotations

import json
import math
import re
from importlib import resources

import pytest

from rlef.report.plots import MOST_LINES, MOST_POINTS, PALETTE, intervals, plain, plot, thinned


def told(one):
    return json.loads(one.json)["told"]


def test_what_is_not_finite_is_left_out_and_a_point_alone_is_no_line():
    assert plot("t", {"a": [(1, math.nan), (2, 1.0)]}, "step") is None
    one = plot("t", {"a": [(1, math.nan), (2, 1.0), (3, 1.5)], "b": []}, "step")
    assert one is not None and told(one)["lines"] == [{"name": "a", "points": [[2, 1.0], [3, 1.5]]}]
    assert plot("t", {"a": [(2, 1.0)]}, "step", dots=True) is not None


def test_the_same_plot_has_the_same_json_and_another_stage_another_place():
    first, again, other = (plot("loss", {"": [(1, 2.0), (2, 1.0)]}, "step", of=of) for of in ("sft", "sft", "dpo"))
    assert first.json == again.json and first.key != other.key and first.json.startswith('{"told"')
    assert f"id={first.key}" in first.figure and json.loads(first.json)["item"]["target_id"] == first.key


def models(one, name):
    found = []

    def walk(value):
        if isinstance(value, dict):
            if value.get("name") == name and "attributes" in value:
                found.append(value["attributes"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(json.loads(one.json)["item"])
    return found


def test_limits_and_the_alarm_are_drawn_and_in_view():
    one = plot("kl", {"": [(1, 0.0), (2, 0.1)]}, "iteration", low=-0.02, high=0.5, alarm=2)
    assert {(span.get("dimension", "width"), span["location"]) for span in models(one, "Span")} == {
        ("width", -0.02),
        ("width", 0.5),
        ("height", 2),
    }
    edges = [{key: box[key] for key in ("top", "bottom") if isinstance(box.get(key), float)} for box in models(one, "BoxAnnotation")]
    assert [edge for edge in edges if edge] == [{"top": -0.02}, {"bottom": 0.5}]
    ranges = [one for one in models(one, "Range1d") if "start" in one]
    assert any(one["start"] < -0.02 and one["end"] > 0.5 for one in ranges)
    free = plot("kl", {"": [(1, 0.0), (2, 0.1)]}, "iteration")
    assert models(free, "Span") == []


def test_intervals_stand_in_the_order_given_and_reach_below_0():
    assert intervals("t", {}) is None
    one = intervals("t", {"first": (0.5, 0.4, 0.6), "<b>second": (-0.1, -0.2, 0.05)})
    assert told(one)["rows"] == ["<b>second", "first"] and told(one)["lines"][0]["points"] == [[0, -0.1, -0.2, 0.05], [1, 0.5, 0.4, 0.6]]
    assert any(span["location"] == 0 for span in models(one, "Span"))


def test_names_are_text_in_the_page_and_no_tex_in_bokeh():
    one = plot("<i>", {"<b>": [(1, 1.0), (2, 2.0)], "$$x$$ \\(y\\)": [(1, 1.0), (2, 2.0)]}, "step")
    assert "<b>" not in one.figure and "<i>" not in one.figure.replace("<i style", "")
    assert plain("$$x$$ \\(y\\)") == "$\u200b$x$\u200b$ \\\u200b(y\\)" and plain("a\x1b[0m") == "a [0m"
    assert "$$" not in one.json and '\\\\("' not in one.json


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 12_345])
def test_many_points_are_thinned_to_both_ends(count):
    points = [(float(x), 0.0) for x in range(count)]
    kept = thinned(points)
    assert len(kept) == min(count, MOST_POINTS) == len(set(kept)) and kept[0] == points[0] and kept[-1] == points[-1]


def test_the_page_has_each_colour_twice_light_and_dark():
    css = resources.files("rlef.report").joinpath("page.css").read_text()
    for name, light in PALETTE.items():
        values = re.findall(rf"{name}: (#\w+);", css)
        assert len(values) == 2 and values[0] == light and values[1] != light, name
    assert len(set(PALETTE.values())) == len(PALETTE)  # the page's script tells them apart by value


def test_lines_beyond_the_most_are_counted_and_not_drawn():
    one = plot("t", {str(place): [(1, 1.0), (2, 2.0)] for place in range(MOST_LINES + 3)}, "step", note="Note.")
    assert len(one.lines) == MOST_LINES and one.note == "Note. 3 more lines are not drawn."
