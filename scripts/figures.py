"""The guide's figures, drawn from a finished run: `python scripts/figures.py RUN [--out rlef/figures]`.

learning.svg: PPO's reward beside what it cannot see, exact match; its distance from the reference; its answers. depths.svg: right answers by
the number of reasoning steps, for each policy. Needs a run with the stages ppo and evaluate. The same run gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
INK = "#7d8590"  # reads on white and on black
COLOURS = ("#0b74de", "#d9730d", "#2da44e", "#bf3989")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", default="ppo")
    parser.add_argument("--out", type=Path, default=ROOT / "rlef" / "figures")
    options = parser.parse_args()
    matplotlib.rcParams |= {
        "svg.hashsalt": "rlef", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.color": INK,
        "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False,
    }  # fmt: skip
    rows = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    results = json.loads((options.run / "evaluate" / "results.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (("learning", learning([row for row in rows if row["stage"] == options.stage])), ("depths", depths(results))):
        figure.savefig(options.out / f"{name}.svg", transparent=True, metadata={"Date": None})
        print(options.out / f"{name}.svg")
    return 0


def learning(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9.6, 2.8), layout="constrained")
    panels = {
        "reward, and what it does not see": {
            "r_A": "reward/answer",
            "r = r_I · r_A": "reward/total",
            "right answers": "monitor/exact_match",
        },
        "KL to the reference, nats an answer": {"": "ppo/kl"},
        "steps an answer": {"": "rollout/steps"},
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for colour, (label, key) in zip(COLOURS, lines.items(), strict=False):
            seen = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            axes.plot(*zip(*seen, strict=True), color=colour, label=label, linewidth=1.8)
        axes.set(title=title, xlabel="iteration of PPO")
        axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(fontsize=9)
    return figure


def depths(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    names = sorted({depth for row in results.values() for depth in row["by_depth"]}, key=int)
    for place, (colour, (policy, row)) in enumerate(zip(COLOURS, results.items(), strict=False)):
        centre = place - (len(results) - 1) / 2
        shares = [100 * row["by_depth"].get(depth, 0) for depth in names]
        axes.bar([index + 0.26 * centre for index in range(len(names))], shares, 0.24, color=colour, label=policy)
    axes.set(xticks=range(len(names)), xticklabels=names, xlabel="reasoning steps of the problem", ylabel="right answers, %")
    axes.legend(fontsize=9)
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
