"""Line charts with intervals as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 46, 14, 44, 34
COLOURS = ("#2563a8", "#c2571a", "#2f8a4c", "#8a3fa0", "#777777")

Point = tuple[float, float] | tuple[float, float, float, float]  # x, y and the ends of y's interval


def line_chart(title: str, series: Mapping[str, Sequence[Point]], across: str, *, doubling: bool = False) -> str:
    """Lines by name, y in 0..1, with bars for intervals where points have them. Points that are not finite are left out; empty where none
    is left. `doubling`: x is on a scale of powers of two, each x marked."""
    lines = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs = sorted({point[0] for points in lines.values() for point in points})
    scale = math.log2 if doubling else float
    low, high = (scale(xs[0]), scale(xs[-1])) if doubling else (0.0, max(1.0, xs[-1]))

    def right(x: float) -> float:
        return LEFT + (scale(x) - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (1 - min(1.0, max(0.0, y))) * (HEIGHT - TOP - BOTTOM)

    name = html.escape(title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" font-family="sans-serif" '
        f'font-size="11"><text x="12" y="16" font-size="13">{name}</text>'
    ]
    for y in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{LEFT}" y1="{down(y):.1f}" x2="{WIDTH - RIGHT}" y2="{down(y):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs if doubling else (low, high):
        parts.append(f'<text x="{right(x):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(across)}</text>')
    legend = float(LEFT)
    for number, (label, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{right(point[0]):.1f},{down(point[1]):.1f}" for point in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path}"/>')
        for point in points:
            parts.append(f'<circle cx="{right(point[0]):.1f}" cy="{down(point[1]):.1f}" r="2.4" fill="{colour}"/>')
            if len(point) == 4:
                x = right(point[0]) + 3 * (number - (len(lines) - 1) / 2)  # side by side
                parts.append(f'<line x1="{x:.1f}" y1="{down(point[2]):.1f}" x2="{x:.1f}" y2="{down(point[3]):.1f}" stroke="{colour}"/>')
        parts.append(f'<text x="{legend:.0f}" y="33" fill="{colour}">● {html.escape(label)}</text>')
        legend += 22 + 6.2 * len(label)
    return "".join(parts) + "</svg>"
