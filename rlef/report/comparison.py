"""Section: this run beside others: results with paired intervals, curves over each other, settings, versions, time and cost."""

from __future__ import annotations

from collections.abc import Sequence

from rlef.report.data import BY_ITERATION, Run
from rlef.report.parts import Section, charts, folded, table, text
from rlef.report.plots import Plot, intervals, plot
from rlef.views.compare import measured, policy_differences, tables

CURVES = {  # metric -> title
    "reward/total": "reward, mean of samples",
    "monitor/exact_match": "samples that match the known answer",
    "rollout/length": "length, tokens an answer",
    "ppo/kl_per_token": "KL from the start, nats a token",
}


def section(runs: Sequence[Run]) -> Section | None:
    """None for a single run. The first run is held against each other one."""
    if len(runs) < 2:
        return None
    names = _names(runs)
    sides = [measured(run.folder) for run in runs]
    drawn: list[Plot | None] = []
    parts = []
    for name, side in zip(names[1:], sides[1:], strict=True):
        gains = {one.policy: (one.gain["mean"], *one.gain["ci95"]) for one in policy_differences(sides[0].outcomes, side.outcomes)}
        picture = intervals("difference in right answers (95 %)", gains, of=f"comparison {name}")
        drawn.append(picture)
        parts.append(f"<h3>{text(names[0])} (1) and {text(name)} (2)</h3>{charts([picture])}")
        for heading, head, rows in tables(sides[0], side):
            shown = table([cell for cell in head], rows, words=head if heading.startswith(("settings", "versions")) else ())
            plain = heading.startswith("right answers")
            parts.append(f"<h4>{text(heading)}</h4>{shown}" if plain else folded(f"{heading} ({len(rows)})", shown))
    curves = _curves(runs, names)
    note = "<p>Over the held-out problems that both runs evaluated, each with itself. A difference is sure where its interval does not hold 0.</p>"
    body = f"{note}{''.join(parts)}" + (f"<h3>Curves over each other</h3>{charts(curves)}" if any(curves) else "")
    return Section("comparison", "Runs compared", body, [one for one in [*drawn, *curves] if one])


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[Plot | None]:
    """Of each stage that samples anew, which two runs or more have."""
    drawn: list[Plot | None] = []
    stages = dict.fromkeys(stage for run in runs for stage in run.of_kind(*BY_ITERATION))
    for stage in stages:
        for metric, words in CURVES.items():
            lines = {name: run.metrics[stage][metric] for name, run in zip(names, runs, strict=True) if run.metrics[stage].get(metric)}
            if len(lines) > 1:
                drawn.append(plot(f"{stage}: {words}", lines, "iteration", of="comparison", shares=metric == "monitor/exact_match"))
    return drawn


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's folder; with the folder above it where two are called the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{run.folder.resolve().parent.name}/{name}" for name, run in zip(names, runs, strict=True)]
