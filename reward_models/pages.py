"""What an evaluation found, for people: tables for a terminal, and one page with pictures that needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from reward_models.charts import line_chart
from reward_models.terminal import inert

Table = tuple[str, list[str], list[list[str]]]  # title, head, rows
STYLE = (
    ":root{--c1:#0969da;--c2:#bf3989;--c3:#1a7f37;--c4:#9a6700}body{font:14px sans-serif;max-width:960px;margin:24px auto;padding:0 12px}"
    "svg{width:420px;max-width:100%;margin:4px}svg text{font:12px sans-serif}svg .a{fill:#59636e;font-size:11px}svg .g{stroke:#d5dbe1}"
    "td,th{padding:2px 12px 2px 0;text-align:right}td:first-child,th:first-child{text-align:left}"
)
CURVES = {"pass": "pass@N", "weighted_vote": "weighted vote", "best_of": "best of N", "majority": "majority"}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Of everything that the result of evaluate_process or evaluate_instruction has; what it lacks has no table."""
    intervals = result.get("intervals", {})
    numbers = [
        [name, _number(value), " to ".join(map(_number, intervals[name])) if name in intervals and _number(value) != "-" else ""]
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    found: list[Table] = [("metrics", ["metric", "measured", "95 %"], numbers)]
    for key, title in (("by_gap", "by rank gap"), ("by_flaw", "by flaw or subset"), ("by_depth", "AUROC of steps by depth")):
        if result.get(key):
            found.append((title, ["", "measured"], [[name, _number(value)] for name, value in result[key].items()]))
    if "confusion" in result:
        counts = result["confusion"]
        rows = [[truth, *(str(counts[f"{truth}_called_{called}"]) for called in ("right", "wrong"))] for truth in ("right", "wrong")]
        found.append((f"steps at threshold {result['threshold']:g}", ["", "called right", "called wrong"], rows))
    if result.get("reliability"):
        bins = [
            [f"{one['from']:.3f} to {one['to']:.3f}", *(_number(one[key]) for key in ("probability", "share", "count"))]
            for one in result["reliability"]
        ]
        found.append(("calibration, bins of equal mass", ["score", "mean score", "share right", "count"], bins))
    if "curves" in result:
        rows = result["curves"]["rows"]
        shares = [[str(row["n"]), *(_interval(row[key]) for key in CURVES)] for row in rows]
        found.append((f"right of {result['curves']['problems']} problems (95 %)", ["N", *CURVES.values()], shares))
        gains = [
            [str(row["n"]), _interval(row["weighted_vote_minus_majority"], "+"), _interval(row["best_of_minus_majority"], "+")]
            for row in rows
        ]
        found.append(("over majority", ["N", "weighted vote", "best of N"], gains))
        ahead = [[str(row["n"]), f"{row['kl']:.2f}", _number(row["proxy"]), _number(row["best_of"]["mean"])] for row in rows]
        found.append(("over-optimisation", ["N", "KL, nats", "r_A of the chosen", "share right"], ahead))
    if result.get("probes"):
        rows = [
            [name.replace("_", " "), str(one["solutions"]), _number(one["before"]), _number(one["after"]), _interval(one["change"], "+"),
             f"{one['raised']:.0%}"]
            for name, one in result["probes"].items()
        ]  # fmt: skip
        found.append(("hack probes", ["probe", "solutions", "r_A before", "after", "change (95 %)", "raised"], rows))
    return found


def as_text(table: Table) -> str:
    """Columns in line, the first to the left, numbers to the right."""
    title, head, rows = table
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return inert("\n".join([title, "-" * len(title), *(line.rstrip() for line in lines)]))


def as_markdown(table: Table) -> str:
    title, head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return f"**{title[0].upper()}{title[1:]}**\n\n" + "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines
    )


def page(title: str, result: Mapping[str, Any]) -> str:
    """One HTML page: pictures of calibration and curves, then all tables."""
    pictures = []
    if result.get("reliability"):
        points = [(one["probability"], one["share"]) for one in result["reliability"]]
        pictures.append(
            line_chart(
                "calibration",
                {"perfect": [(0.0, 0.0), (1.0, 1.0)], "model": points},
                "mean score of a bin; upwards the share that is right",
                shares=True,
            )
        )
    if "curves" in result:
        rows = result["curves"]["rows"]
        lines = {label: [(row["n"], row[key]["mean"], *row[key]["ci95"]) for row in rows] for key, label in CURVES.items()}
        across = "solutions a problem, N"
        pictures.append(line_chart("share of problems right, with 95 % intervals", lines, across, shares=True, doubling=True))
        ahead = {"r_A of the chosen": [(row["n"], row["proxy"]) for row in rows]}
        ahead |= {"share right": [(row["n"], row["best_of"]["mean"], *row["best_of"]["ci95"]) for row in rows]}
        pictures.append(line_chart("over-optimisation: score against truth", ahead, "best of N", shares=True, doubling=True))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{html.escape(title)}</h1>"
        f"<div>{''.join(pictures)}</div>{''.join(map(_as_html, tables(result)))}</html>\n"
    )


def _as_html(table: Table) -> str:
    title, head, rows = table
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<h2>{html.escape(title)}</h2><table>{''.join(lines)}</table>"


def _number(value: float | int | None) -> str:
    if value is None or value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _interval(found: Mapping[str, Any], sign: str = "") -> str:
    """As in 0.62 (0.55 to 0.70)."""
    low, high = found["ci95"]
    return f"{found['mean']:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"
