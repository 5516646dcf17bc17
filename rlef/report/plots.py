"""Interactive plots: Bokeh figures as JSON, drawn by the page in the colours of its scheme, with the same numbers for the keyboard.

A figure's colours are the light ones of PALETTE; the page's script puts the scheme's in their place. Words of models and users never
reach Bokeh but as names of lines, where nothing reads them as HTML or TeX.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Point = tuple[float, float] | tuple[float, float, float, float]  # x, y and the ends of y's interval

PALETTE = {  # custom property of page.css -> its light value
    "--c1": "#0969da",
    "--c2": "#bf3989",
    "--c3": "#1a7f37",
    "--c4": "#9a6700",
    "--c5": "#0e7c86",
    "--c6": "#8250df",
    "--dim": "#59636e",
    "--line": "#d5dbe1",
    "--bad": "#cf222e",
}
COLOURS = tuple(PALETTE[f"--c{number}"] for number in range(1, 7))
DASHES = ("solid", "dashed", "dotted", "dotdash")  # once the colours are used up
MOST_LINES = 12  # of a plot
MOST_POINTS = 400  # of a line; of more, evenly spaced ones are drawn, the last among them
HEIGHT = 210


@dataclass(frozen=True)
class Plot:
    """Lines by name over a shared axis. An axis of shares goes from 0 to 1; `low` and `high` are a guard's limits, `alarm` where it rose."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    across: str
    of: str = ""  # what it belongs to, e.g. a stage: two plots of one title differ in it
    shares: bool = False
    dots: bool = False
    doubling: bool = False  # x on a scale of powers of two
    diagonal: bool = False  # where x and y are equal
    low: float = -math.inf
    high: float = math.inf
    alarm: float | None = None
    metric: str = ""  # its name in metrics.jsonl, where that helps
    note: str = ""
    rows: Sequence[str] = field(default_factory=tuple)  # y counts these, from 0 below: a chart of intervals, lying

    @property
    def key(self) -> str:
        return "p" + hashlib.sha256(f"{self.of}/{self.title}".encode(errors="replace")).hexdigest()[:10]

    @property
    def figure(self) -> str:
        """Where the page's script draws it: title, lines to show and hide, the plot, the values at the keyboard's cursor."""
        names = [name for name in self.lines if name]
        buttons = "".join(
            f"<button type=button class=key aria-pressed=true data-line={place}><i style='--k:var(--c{place % len(COLOURS) + 1})'></i>{html.escape(plain(name))}</button>"
            for place, name in enumerate(names)
        )
        metric = f"<small>{html.escape(self.metric)}</small>" if self.metric else ""
        return (
            f"<figure class=plot id={self.key}><figcaption>{html.escape(self.title)}{metric}</figcaption>"
            f"<div class=keys>{buttons if len(names) > 1 else ''}</div>"
            f"<div class=stage><div class=canvas tabindex=0 role=application aria-roledescription=plot style='height:{self.height}px' "
            f"aria-label='{html.escape(self.title)}. Left and right arrow keys read its values.'></div>"
            f"<i class=cursor></i><div class=values role=status></div></div><p class=note>{html.escape(self.note)}</p></figure>"
        )

    @property
    def height(self) -> int:
        return HEIGHT if not self.rows else 70 + 26 * len(self.rows)

    @cached_property
    def json(self) -> str:
        """The figure and its numbers for the page's script."""
        numbers = [
            {"name": plain(name) or self.title, "points": [[_short(value) for value in point] for point in points]}
            for name, points in self.lines.items()
        ]
        told = {"across": self.across, "shares": self.shares, "rows": [plain(row) for row in self.rows], "lines": numbers}
        return f'{{"told":{json.dumps(told)},"item":{self._item()}}}'

    def _item(self) -> str:
        """Bokeh's JSON; its ids count from one for each plot, so that the same run gives the same page."""
        from bokeh.embed import json_item

        found = json.dumps(json_item(self._draw(), self.key), separators=(",", ":"))  # type: ignore[arg-type]
        known: dict[str, str] = {}
        return re.sub(r'"(id|root_id)":"(p\d+)"', lambda one: f'"{one[1]}":"{known.setdefault(one[2], f"{self.key}.{len(known)}")}"', found)

    def _draw(self) -> Any:
        models, plotting = _bokeh()

        xs = [point[0] for points in self.lines.values() for point in points]
        drawn = plotting.figure(
            height=self.height,
            sizing_mode="stretch_width",
            tools="xbox_zoom" if not self.rows else "",
            active_drag="xbox_zoom" if not self.rows else None,
            toolbar_location=None,
            x_axis_type="log" if self.doubling else "linear",
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
            min_border_right=12,
            lod_threshold=None,
        )
        for axis in drawn.axis:
            axis.update(
                axis_line_color=PALETTE["--line"],
                major_tick_line_color=PALETTE["--line"],
                minor_tick_line_color=None,
                major_label_text_color=PALETTE["--dim"],
                axis_label_text_color=PALETTE["--dim"],
                major_label_text_font="system-ui, sans-serif",
                axis_label_text_font="system-ui, sans-serif",
                major_label_text_font_size="11px",
                axis_label_text_font_size="11px",
                axis_label_text_font_style="normal",
            )
        drawn.xaxis.axis_label = self.across
        drawn.yaxis.formatter = models.BasicTickFormatter(power_limit_low=-6)
        if not self.diagonal and not self.rows:
            drawn.xaxis.ticker.min_interval = 1  # rounds, steps and iterations are whole
        drawn.grid.grid_line_color = PALETTE["--line"]
        drawn.grid.grid_line_alpha = 0.6
        drawn.xgrid.grid_line_color = PALETTE["--line"] if self.rows else None
        if self.doubling:
            drawn.xaxis.ticker = models.FixedTicker(ticks=sorted(set(xs)))
            drawn.xaxis.formatter = models.NumeralTickFormatter(format="0")
        if self.diagonal:
            drawn.line([0, 1], [0, 1], color=PALETTE["--dim"], line_dash="dashed")
        if self.rows:
            self._lie(drawn)
            return drawn
        low, high = (0.0, 1.0) if self.shares else _about(self._heights())
        pad = 0.03 * (high - low)
        drawn.y_range = models.Range1d(low - pad * self.shares, high + pad * self.shares)
        for edge, ends in ((self.low, {"top": self.low}), (self.high, {"bottom": self.high})):
            if math.isfinite(edge):
                drawn.add_layout(models.BoxAnnotation(**ends, fill_color=PALETTE["--bad"], fill_alpha=0.1, line_color=None))
                drawn.add_layout(models.Span(location=edge, dimension="width", line_color=PALETTE["--bad"], line_dash="dashed"))
        if self.alarm is not None:
            drawn.add_layout(models.Span(location=self.alarm, dimension="height", line_color=PALETTE["--bad"], line_width=2))
        if self.shares:
            drawn.yaxis.formatter = models.NumeralTickFormatter(format="0%")
        for place, points in enumerate(self.lines.values()):
            colour, points = COLOURS[place % len(COLOURS)], list(points)
            dash = DASHES[place // len(COLOURS) % len(DASHES)]
            aside = 0.0  # intervals of one x side by side
            if any(len(point) == 4 for point in points) and not self.doubling:
                aside = (place - (len(self.lines) - 1) / 2) * 0.012 * ((max(xs) - min(xs)) or 1.0)
            source = models.ColumnDataSource({"x": [point[0] + aside for point in points], "y": [_short(point[1]) for point in points]})
            drawn.line("x", "y", source=source, color=colour, line_width=2, line_dash=dash, name=f"line{place}")
            if self.dots or len(points) == 1:
                drawn.scatter("x", "y", source=source, color=colour, size=6, name=f"line{place}")
            ranged = [point for point in points if len(point) == 4]
            if ranged:
                drawn.segment(
                    x0=[point[0] + aside for point in ranged],
                    y0=[_short(point[2]) for point in ranged],
                    x1=[point[0] + aside for point in ranged],
                    y1=[_short(point[3]) for point in ranged],
                    color=colour,
                    line_width=1.5,
                    line_alpha=0.7,
                    name=f"line{place}",
                )
        return drawn

    def _lie(self, drawn: Any) -> None:
        """A row for each name: its value as a dot and its interval as a line, beside 0 where an interval goes below."""
        models, _ = _bokeh()

        points: Sequence[Any] = next(iter(self.lines.values()))  # each with its interval
        drawn.y_range = models.Range1d(-0.6, len(self.rows) - 0.4)
        drawn.yaxis.ticker = models.FixedTicker(ticks=list(range(len(self.rows))))
        drawn.yaxis.major_label_overrides = {place: plain(row)[:18] for place, row in enumerate(self.rows)}
        drawn.ygrid.grid_line_color = None
        drawn.xaxis.formatter = models.NumeralTickFormatter(format="0%")
        low, high = min(0.0, *(point[2] for point in points)), max(0.0, *(point[3] for point in points)) or 0.01
        drawn.x_range = models.Range1d(low - 0.05 * (high - low), high + 0.05 * (high - low))
        if low < 0:
            drawn.add_layout(models.Span(location=0, dimension="height", line_color=PALETTE["--dim"]))
        heights, values, lows, highs = ([_short(point[place]) for point in points] for place in range(4))
        drawn.segment(x0=lows, y0=heights, x1=highs, y1=heights, color=PALETTE["--c1"], line_width=2)
        drawn.scatter(values, heights, color=PALETTE["--c1"], size=9)

    def _heights(self) -> list[float]:
        return [value for points in self.lines.values() for point in points for value in point[1:]] + [
            edge for edge in (self.low, self.high) if math.isfinite(edge)
        ]


def _bokeh() -> tuple[Any, Any]:
    """Its models and its plotting, whose types know neither named columns nor unpacked settings."""
    from bokeh import models, plotting

    return models, plotting


def plot(title: str, lines: Mapping[str, Sequence[Point]], across: str, **how: Any) -> Plot | None:
    """None where no line is left: points that are not finite are left out, and a line without dots needs two points."""
    least = 1 if how.get("dots") or how.get("shares") else 2
    finite = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in lines.items()}
    kept = {name: thinned(points) for name, points in finite.items() if len(points) >= least}
    if len(kept) > MOST_LINES:
        how["note"] = f"{how.get('note', '')} {len(kept) - MOST_LINES} more lines are not drawn.".strip()
        kept = dict(list(kept.items())[:MOST_LINES])
    return Plot(title, kept, across, **how) if kept else None


def intervals(title: str, rows: dict[str, tuple[float, float, float]], *, of: str = "") -> Plot | None:
    """Shares with their intervals (value, low, high) by name, the first on top. None without rows."""
    if not rows:
        return None
    points = [(place, *row) for place, row in enumerate(reversed(rows.values()))]
    return Plot(title, {"": points}, "", of=of, rows=list(reversed(rows)))


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS, evenly spaced, both ends among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]


def plain(name: str) -> str:
    """A name that Bokeh draws as it stands: it would read $$ and \\[ as TeX, and fetch a typesetter for it."""
    name = "".join(character if character.isprintable() else " " for character in name[:80])
    return re.sub(r"\$\$|\\\[|\\\(", lambda found: "\u200b".join(found[0]), name)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _about(values: Sequence[float]) -> tuple[float, float]:
    """A little below the least and a little above the greatest; not below 0 for its own sake."""
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad if low < 0 else max(0.0, low - pad), high + pad
