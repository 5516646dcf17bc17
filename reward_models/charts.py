"""Line charts as inline SVG: no script, no font, no file beside the page. Their colours are the page's: --c1 to --c4, classes a and g."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 62, 12, 42, 26
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")

Point = tuple[float, float] | tuple[float, float, float, float]  # x, y and the ends of y's interval


def line_chart(title: str, series: Mapping[str, Sequence[Point]], across: str, *, shares: bool = False, doubling: bool = False) -> str:
    """Lines by name over a shared x axis, which counts `across`; points that are not finite are left out. Empty where no line is left.

    `shares`: y is 0..1, points have dots, and bars for intervals that they have; else y is as the values need, and a line has two points
    or more. `doubling`: x is on a scale of powers of two, each x marked.
    """
    lines = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if len(points) > (0 if shares else 1)}
    if not lines:
        return ""
    xs = sorted({point[0] for points in lines.values() for point in points})
    low, high = (0.0, 1.0) if shares else _about([point[1] for points in lines.values() for point in points])
    scale = math.log2 if doubling else float

    def right(x: float) -> float:
        return LEFT + (scale(x) - scale(xs[0])) / ((scale(xs[-1]) - scale(xs[0])) or 1.0) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - min(high, max(low, y))) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [opening(title, HEIGHT)]
    for y in (low, (low + high) / 2, high):
        parts.append(f'<line x1="{LEFT}" y1="{down(y):.1f}" x2="{WIDTH - RIGHT}" y2="{down(y):.1f}" class="g"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{down(y) + 4:.1f}" class="a" text-anchor="end">{y:.3g}</text>')
    for x in xs if doubling else (xs[0], xs[-1]):
        anchor = "end" if x == xs[-1] else "middle"  # or a long number would be cut off
        parts.append(f'<text x="{right(x):.1f}" y="{HEIGHT - 14}" class="a" text-anchor="{anchor}">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 2}" class="a" text-anchor="middle">{html.escape(across)}</text>')
    legend = float(LEFT)
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{right(point[0]):.1f},{down(point[1]):.1f}" for point in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path}"/>')
        for point in points if shares else ():
            parts.append(f'<circle cx="{right(point[0]):.1f}" cy="{down(point[1]):.1f}" r="2.4" fill="{colour}"/>')
            if len(point) == 4:
                x = right(point[0]) + 3 * (number - (len(lines) - 1) / 2)  # side by side
                parts.append(f'<line x1="{x:.1f}" y1="{down(point[2]):.1f}" x2="{x:.1f}" y2="{down(point[3]):.1f}" stroke="{colour}"/>')
        if len(lines) > 1:
            parts.append(f'<text x="{legend:.0f}" y="31" class="a" style="fill:{colour}">● {html.escape(name)}</text>')
            legend += 24 + 6 * len(name)
    return "".join(parts) + "</svg>"


def opening(title: str, height: int) -> str:
    """The tag of a chart, and its title."""
    name = html.escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}"><text x="12" y="16">{name}</text>'


def _about(values: Sequence[float]) -> tuple[float, float]:
    """A little below the least and a little above the greatest; not below 0 for its own sake."""
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad if low < 0 else max(0.0, low - pad), high + pad
