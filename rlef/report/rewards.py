"""Sections: what each reward model learned: its loss, its measures with intervals, calibration, confusion, and what it is worth to a vote."""

from __future__ import annotations

from typing import Any

from reward_models.statistics import wilson
from rlef.report.data import REWARD_MODELS, Run
from rlef.report.names import FLAWS, MEASURES, TITLES
from rlef.report.parts import Section, bars, charts, number, percent, table, title
from rlef.report.plots import Plot, plot

PARTS = (  # key of the result, what stands before its names, heading
    ("by_flaw", "", "Sound problem above a flawed one, by flaw (0.5 is guessing)"),
    ("by_gap", "distance ", "Right order by distance in the judge's ranking (0.5 is guessing)"),
    ("by_depth", "depth ", "Step AUROC by the problem's depth in reasoning steps (0.5 is guessing)"),
)
VOTES = {"pass": "any is right", "weighted_vote": "vote weighted by r_A", "best_of": "best r_A", "majority": "majority"}


def sections(run: Run) -> list[Section]:
    return [one for name in run.of_kind(*REWARD_MODELS) if (one := _section(run, name)) is not None]


def _section(run: Run, name: str) -> Section | None:
    kind, result, curves = run.kinds[name], run.result(name), run.metrics[name]
    if not result and not any(curves.values()):
        return None
    drawn = [plot("training loss", {"loss": curves.get(f"{kind}/loss", [])}, "optimiser step", of=name), *_measured(name, result)]
    parts = [charts(drawn)]
    if kind == "prm":
        parts += [_confusion(result), _probes(result)]
    for key, word, heading in PARTS:
        if result.get(key):
            parts.append(f"<h3>{heading}</h3>" + bars(((word + one, value) for one, value in result[key].items()), FLAWS, most=1.0))
    if result:
        parts.append("<h3>All measures, on held-out data</h3>" + _measures(result))
    return Section(f"stage-{name}", title(TITLES[kind], name, kind), "".join(parts), [one for one in drawn if one])


def _measured(name: str, result: dict[str, Any]) -> list[Plot | None]:
    bins = result.get("reliability") or []
    calibration = [(one["probability"], one["share"], *wilson(one["share"] * one["count"], one["count"])) for one in bins]
    note = "On the dashed line a score is a true chance; below it the model is too sure, above it not sure enough."
    drawn = [
        plot(
            "calibration",
            {"share that is right": calibration},
            "mean score of a bin",
            of=name,
            shares=True,
            dots=True,
            diagonal=True,
            note=note,
        )
    ]
    if rows := (result.get("curves") or {}).get("rows"):
        votes = {label: [(row["n"], row[key]["mean"], *row[key]["ci95"]) for row in rows if key in row] for key, label in VOTES.items()}
        ahead = {
            "r_A of the chosen": [(row["n"], row["proxy"]) for row in rows],
            "share right": [(row["n"], row["best_of"]["mean"], *row["best_of"]["ci95"]) for row in rows],
        }
        of = f"{result['curves']['problems']} held-out problems"
        drawn.append(plot(f"solved with N samples, {of}", votes, "samples, N", of=name, shares=True, dots=True, doubling=True))
        note = "Where the score goes on rising and the share that is right does not, the choice fools the model."
        drawn.append(plot("best of N: score and truth", ahead, "samples, N", of=name, shares=True, dots=True, doubling=True, note=note))
    return drawn


def _confusion(result: dict[str, Any]) -> str:
    """Steps at the threshold, as a table shaded by the share of its row."""
    counts = result.get("confusion")
    if not counts:
        return ""
    rows = []
    for truth in ("right", "wrong"):
        called = [counts[f"{truth}_called_{one}"] for one in ("right", "wrong")]
        cells = [
            f"<td class=n style='--share:{100 * one / (sum(called) or 1):.0f}%'>{one:,} <span>{one / (sum(called) or 1):.0%}</span>"
            for one in called
        ]
        rows.append(f"<tr><th scope=row>{truth} steps{''.join(cells)}")
    return (
        f"<h3>Steps that score below {number(result['threshold'])} are called wrong</h3><table class=confusion><thead><tr><td>"
        f"<th class=n scope=col>called right<th class=n scope=col>called wrong<tbody>{''.join(rows)}</table>"
    )


def _probes(result: dict[str, Any]) -> str:
    """Solutions that were tampered with: does the model pay for it?"""
    rows = [
        [one.replace("_", " "), found["solutions"], number(found["before"]), number(found["after"]), percent(found["raised"])]
        for one, found in (result.get("probes") or {}).items()
    ]
    note = "<p>Right or wrong solutions with one thing done to them; a model that can be fooled pays more for the worse text.</p>"
    return f"<h3>Can it be fooled?</h3>{note}{table(['tampered', 'solutions', 'r_A before', 'after', 'raised'], rows)}" if rows else ""


def _measures(result: dict[str, Any]) -> str:
    intervals = result.get("intervals", {})
    rows = [
        [key, number(value), " to ".join(map(number, intervals[key])) if intervals.get(key) else "", MEASURES.get(key, "")]
        for key, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return table(["measure", "value", "95% interval", "meaning"], rows)
