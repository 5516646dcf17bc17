"""Charts of the report beside reward_models' line charts: intervals, as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Mapping

from reward_models.charts import WIDTH, opening

ROW = 24  # height of a row


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
    parts = [opening(title, height)]
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
