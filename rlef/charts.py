"""Small line charts as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 48, 10, 26, 26
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")

Series = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Series]) -> str:
    """Lines by name over a shared x axis; values that are not finite are gaps. Empty where no line has two points."""
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if len(points) >= 2}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    span = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - min(xs)) / span * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}"><text x="{LEFT}" y="14" class="t">{html.escape(title)}</text>'
    ]
    for fraction in (0.0, 0.5, 1.0):
        value = low + fraction * (high - low)
        y = TOP + (1 - fraction) * (HEIGHT - TOP - BOTTOM)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="g"/><text x="{LEFT - 5}" y="{y + 4:.1f}" class="a" text-anchor="end">{value:.3g}</text>'
        )
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 8}" class="a">{min(xs):g}</text><text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" class="a" text-anchor="end">{max(xs):g}</text>'
    )
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{" ".join(place(x, y) for x, y in points)}"/>')
        if len(lines) > 1:
            parts.append(f'<text x="{LEFT + 60 + 90 * number}" y="{HEIGHT - 8}" class="a" style="fill:{colour}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"
