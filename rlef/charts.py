"""Small line charts as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 62, 12, 42, 26
ROW = 24  # height of a row of an interval chart
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")

Series = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Series], across: str) -> str:
    """Lines by name over a shared x axis, which counts `across`; values that are not finite are left out. Empty where no line has two points."""
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if len(points) >= 2}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - pad if low < 0 else max(0.0, low - pad), high + pad
    span = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> str:
        right = LEFT + (x - min(xs)) / span * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{right:.1f},{down:.1f}"

    parts = [_open(title, HEIGHT)]
    for fraction in (0.0, 0.5, 1.0):
        value = low + fraction * (high - low)
        y = TOP + (1 - fraction) * (HEIGHT - TOP - BOTTOM)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="g"/><text x="{LEFT - 5}" y="{y + 4:.1f}" class="a" text-anchor="end">{value:.3g}</text>'
        )
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 8}" class="a">{min(xs):g}</text><text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" class="a" text-anchor="end">{max(xs):g}</text>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" class="a" text-anchor="middle">{html.escape(across)}</text>'
    )
    legend = LEFT
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{" ".join(place(x, y) for x, y in points)}"/>')
        if len(lines) > 1:
            parts.append(f'<text x="{legend}" y="31" class="a" style="fill:{colour}">● {html.escape(name)}</text>')
            legend += 24 + 6 * len(name)
    return "".join(parts) + "</svg>"


def interval_chart(title: str, rows: Mapping[str, tuple[float, float, float]]) -> str:
    """A share and its interval (value, low, high) by name, with a line at 0 where an interval reaches below it. Empty without rows."""
    if not rows:
        return ""
    low = min(0.0, *(row[1] for row in rows.values()))
    high = max(0.0, *(row[2] for row in rows.values())) or 0.01
    left, top = 110, 26
    height = top + ROW * len(rows) + 22

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - 24)

    bottom = height - 20
    parts = [_open(title, height)]
    for value in (0.0, *(end for end in (low, high) if abs(end) > (high - low) / 8)):  # labels must not run into each other
        parts.append(
            f'<line x1="{place(value):.1f}" y1="{top}" x2="{place(value):.1f}" y2="{bottom}" class="g"/><text x="{place(value):.1f}" y="{height - 6}" class="a" text-anchor="middle">{100 * value:.0f}%</text>'
        )
    for number, (name, (value, start, end)) in enumerate(rows.items()):
        y = top + ROW * (number + 0.5)
        short = name if len(name) <= 15 else f"{name[:14]}…"
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{html.escape(short)}</text>'
            f'<line x1="{place(start):.1f}" y1="{y}" x2="{place(end):.1f}" y2="{y}" stroke="var(--c1)" stroke-width="2"/><circle cx="{place(value):.1f}" cy="{y}" r="4" fill="var(--c1)"/>'
        )
    return "".join(parts) + "</svg>"


def _open(title: str, height: int) -> str:
    name = html.escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}"><text x="12" y="16">{name}</text>'
