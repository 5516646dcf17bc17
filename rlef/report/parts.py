"""The pieces that sections are made of: escaped text, tables, bars and numbers, as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.statistics import in_points
from reward_models.terminal import inert
from rlef.report.plots import Plot

LONGEST = 4000  # characters of a text that are shown


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading and a link to it. `viewer`: what its script shows, as JSON, under its anchor's name."""

    anchor: str
    title: str
    body: str
    plots: Sequence[Plot] = ()
    viewer: Any = None


def text(value: object) -> str:
    """Escaped for HTML, else as `shown`."""
    return html.escape(shown(str(value)))


def shown(words: str, longest: int = LONGEST) -> str:
    """Cut where it is very long; what would turn a line round or act in another way stands as its code."""
    return inert(cut(words, longest))


def cut(words: str, longest: int = LONGEST) -> str:
    return words if len(words) <= longest else f"{words[:longest]} …"


def title(words: str, name: str, kind: str) -> str:
    """With the stage's name where it is not its kind's, before the colon, so that the menu has it too."""
    head, colon, rest = words.partition(":")
    return words if name == kind else f"{head} ({name}){colon}{rest}"


def named(name: str, meanings: Mapping[str, str]) -> str:
    """A name as the files have it, and what it means."""
    return text(name) + (f" <span class=dim>{text(meanings[name])}</span>" if name in meanings else "")


def bars(rows: Iterable[tuple[str, float | None]], meanings: Mapping[str, str] | None = None, *, most: float | None = None) -> str:
    """Rows of (name, value), each with a bar; the longest is `most` or else the largest value."""
    listed = list(rows)
    top = most or max((value or 0 for _, value in listed), default=0) or 1
    cells = [f"<tr><td>{named(name, meanings or {})}<td class=n>{number(value)}{_bar(value, top)}" for name, value in listed]
    return f"<table class=bars>{''.join(cells)}</table>" if cells else "<p class=dim>None.</p>"


def _bar(value: float | None, most: float) -> str:
    return f"<td><div style='width:{100 * min(1.0, value / most):.0f}%'></div>" if value and value > 0 else "<td>"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, words: Sequence[str] = ("meaning",)) -> str:
    """Columns after the first are numbers, and stand right, but for those of `words`. Cells are escaped."""
    kinds = ["" if not place else " class=w" if cell in words else " class=n" for place, cell in enumerate(head)]
    body = "".join("<tr>" + "".join(f"<td{kind}>{text(cell)}" for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    heads = "".join(f"<th{kind} scope=col>{text(cell)}" for kind, cell in zip(kinds, head, strict=True))
    return (
        f"<div class=wide tabindex=0 role=region aria-label='Table: {text(head[0])}'><table><thead><tr>{heads}<tbody>{body}</table></div>"
    )


def charts(plots: Iterable[Plot | None]) -> str:
    """The figures of plots, side by side where there is room; plots without a point are left out."""
    figures = "".join(plot.figure for plot in plots if plot)
    return f"<div class=charts>{figures}</div>" if figures else ""


def folded(summary: str, body: str) -> str:
    """Shown when it is asked for."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def scalars(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, number(value)) for key, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)]


def gain(difference: Mapping[str, Any]) -> str:
    mean, low, high = in_points(difference)
    return f"{mean} points, {low} to {high}"


def number(value: float | None) -> str:
    if value is None or math.isnan(value):  # a measure without data
        return "–"
    if isinstance(value, float):
        return "0" if abs(value) < 1e-6 else f"{value:.3g}"
    return f"{value:,}"


def percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"


def duration(seconds: float) -> str:
    """As in 48 s, 7.6 min, 3.2 h."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
