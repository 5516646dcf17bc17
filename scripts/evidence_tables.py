"""What the runs of evidence.py show: differences with two intervals, claims with verdicts, vote curves, steps an answer; as tables and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.charts import line_chart
from reward_models.curves import curves
from reward_models.records import Candidate
from reward_models.statistics import over_seeds
from rlef.config import Config, ModelSection, ProblemsStage
from rlef.prompts import split_answer
from rlef.views.charts import interval_chart

Row = dict[str, Any]
POLICIES = {
    "sft": "SFT on seeds and evolved problems",
    "sft_seeds": "SFT on the seeds alone",
    "sft_more": "SFT continued on as many answers as PPO",
    "rft": "best of n, imitated",
    "dpo": "DPO",
    "step_dpo": "Step-DPO",
    "grpo": "GRPO",
    "ppo": "PPO, IRM x PRM, mode F (running_min_delta)",
    "ppo_prm": "PPO, PRM alone",
    "ppo_orm": "PPO, ORM alone",
    "ppo_a": "PPO, mode A (min_terminal)",
    "ppo_b": "PPO, mode B (step_sum)",
}


MADE_IN = {"sft": "common", "label": "common", "irm": "irm", "prm": "prm", "orm": "orm"}  # the longer of the stages that are shared


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second`, problem by problem of a seed. A side is a variant and what is measured of it; `sft.orm` is SFT's samples
    scored by the outcome model. `unseen`: only problems of more steps than the seeds have."""

    first: tuple[str, str]
    second: tuple[str, str]
    unseen: bool = False


def _right(first: str, second: str, **options: bool) -> Comparison:
    return Comparison((first, "right"), (second, "right"), **options)


COMPARISONS = {
    "ppo - sft": _right("ppo", "sft"),
    "ppo - sft_more": _right("ppo", "sft_more"),
    "ppo - rft": _right("ppo", "rft"),
    "ppo - dpo": _right("ppo", "dpo"),
    "ppo - grpo": _right("ppo", "grpo"),
    "ppo - ppo_orm": _right("ppo", "ppo_orm"),
    "ppo - ppo_prm": _right("ppo", "ppo_prm"),
    "ppo - ppo_a": _right("ppo", "ppo_a"),
    "ppo - ppo_b": _right("ppo", "ppo_b"),
    "dpo - sft": _right("dpo", "sft"),
    "step_dpo - dpo": _right("step_dpo", "dpo"),
    "grpo - sft": _right("grpo", "sft"),
    "sft - seeds": _right("sft", "sft_seeds"),
    "same, unseen": _right("sft", "sft_seeds", unseen=True),
    "PRM - majority": Comparison(("sft", "prm_vote"), ("sft", "majority")),
    "ORM - majority": Comparison(("sft.orm", "prm_vote"), ("sft", "majority")),
    "PRM - ORM vote": Comparison(("sft", "prm_vote"), ("sft.orm", "prm_vote")),
    "PRM - ORM best": Comparison(("sft", "best"), ("sft.orm", "best")),
    "steps B - sft": Comparison(("ppo_b", "steps"), ("sft", "steps")),
    "steps A - sft": Comparison(("ppo_a", "steps"), ("sft", "steps")),
    "steps F - sft": Comparison(("ppo", "steps"), ("sft", "steps")),
}


@dataclass(frozen=True)
class Claim:
    """Stands where the mean is `least` or more and both intervals lie above 0; with `most`, where both lie below that."""

    text: str
    comparison: str
    least: float = 0.0
    most: float | None = None

    def stands(self, found: Mapping[str, Any]) -> bool:
        intervals = [ends for ends in (found["ci95"], found["ci95_seeds"]) if not math.isnan(ends[0])]
        if self.most is not None:
            return all(high < self.most for _, high in intervals)
        return found["mean"] >= self.least and all(low > 0 for low, _ in intervals)


CLAIMS = (
    Claim("PPO (IRM x PRM) gains 8 points on SFT", "ppo - sft", least=0.08),
    Claim("PPO (IRM x PRM) is above SFT continued", "ppo - sft_more"),
    Claim("PPO (IRM x PRM) is above PPO (ORM)", "ppo - ppo_orm"),
    Claim("the IRM adds to the PRM", "ppo - ppo_prm"),
    Claim("PPO is above best-of-n imitation", "ppo - rft"),
    Claim("PPO is above DPO", "ppo - dpo"),
    Claim("DPO is above SFT", "dpo - sft"),
    Claim("GRPO is above SFT", "grpo - sft"),
    Claim("Step-DPO is above DPO", "step_dpo - dpo"),
    Claim("mode F is above mode A", "ppo - ppo_a"),
    Claim("mode F is above mode B", "ppo - ppo_b"),
    Claim("mode B writes more steps than SFT", "steps B - sft"),
    Claim("mode F does not (a tenth of a step at most)", "steps F - sft", most=0.1),
    Claim("evolved data gain 10 points at depths that the seeds lack", "same, unseen", least=0.1),
    Claim("votes weighted by the PRM beat the majority", "PRM - majority"),
    Claim("votes weighted by the PRM beat those weighted by the ORM", "PRM - ORM vote"),
)


def measured(out: Path, seeds: Sequence[int], names: Sequence[str], config: Config) -> dict[str, Any]:
    """Everything that finished runs say, as one JSON object."""
    rows = {(seed, side): found for seed in seeds for side in (*names, "sft.orm") if (found := read_rows(out, seed, side))}
    problems = next(stage for stage in config.stages.values() if isinstance(stage, ProblemsStage))
    deepest = problems.seed_depths[1]
    compared = {name: compare(one, rows, seeds, config.model, deepest) for name, one in COMPARISONS.items()}
    differences = {name: found for name, found in compared.items() if found is not None}
    policies = {}
    for name in names:
        mine = {seed: rows[seed, name] for seed in seeds if (seed, name) in rows}
        if mine:
            policies[name] = over_seeds([[float(row["right"]) for row in one] for one in mine.values()]) | {
                "seeds": list(mine),
                "by_depth": by_depth([row for one in mine.values() for row in one]),
                "seconds": [seconds(out / f"seed_{seed}.{name}", name) for seed in mine],
            }
    return {
        "policies": policies,
        "differences": differences,
        "claims": [
            {"claim": one.text, "comparison": one.comparison, "stands": one.stands(differences[one.comparison])}
            for one in CLAIMS
            if one.comparison in differences
        ],
        "curves": vote_curves(rows, seeds),
        "training_steps": {name: grown for name in names if (grown := training_steps(out, seeds, name))},
        "reward_models": {name: found for name in ("irm", "prm", "orm") if (found := reward_model(out, seeds, name))},
        "common_seconds": {stage: [seconds(out / f"seed_{seed}.{part}", stage) for seed in seeds] for stage, part in MADE_IN.items()},
    }  # fmt: skip


def read_rows(out: Path, seed: int, side: str) -> list[Row]:
    """The evaluation of a variant; empty where it is not finished."""
    name, _, scorer = side.partition(".")
    folder = out / f"seed_{seed}.{name}" / ("evaluate_orm" if scorer else "evaluate")
    if not (folder / "manifest.json").is_file():
        return []
    with (folder / f"samples_{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def compare(
    one: Comparison, rows: Mapping[tuple[int, str], list[Row]], seeds: Sequence[int], model: ModelSection, deepest: int
) -> dict[str, Any] | None:
    """The difference over the seeds that have both sides, paired by problem; None where there is no such seed."""
    per_seed = {}
    for seed in seeds:
        if (seed, one.first[0]) in rows and (seed, one.second[0]) in rows:
            asked = [row for row in rows[seed, one.second[0]] if not one.unseen or (row["depth"] or 0) > deepest]
            second = {row["problem_id"]: value(row, one.second[1], model) for row in asked}
            first = {row["problem_id"]: value(row, one.first[1], model) for row in rows[seed, one.first[0]]}
            paired = [
                first[key] - second[key] for key in second if key in first and not (math.isnan(first[key]) or math.isnan(second[key]))
            ]
            if paired:
                per_seed[seed] = paired
    return over_seeds(list(per_seed.values())) | {"seeds": list(per_seed)} if per_seed else None


def value(row: Row, measure: str, model: ModelSection) -> float:
    """A row's number; nan where a problem was not sampled."""
    if measure == "steps":
        return float(len(split_answer(row["text"], model)[0]))
    return math.nan if row.get(measure) is None else float(row[measure])


def by_depth(rows: Sequence[Row]) -> dict[str, float]:
    depths = sorted({row["depth"] for row in rows if row["depth"] is not None})
    return {str(depth): float(np.mean([row["right"] for row in rows if row["depth"] == depth])) for depth in depths}


def vote_curves(rows: Mapping[tuple[int, str], list[Row]], seeds: Sequence[int]) -> dict[str, Any]:
    """Right answers of SFT's samples as their number grows, by the scorer that weighs and picks; problems of all seeds together."""
    found = {}
    for scorer, side in (("PRM", "sft"), ("ORM", "sft.orm")):
        sampled = [row["candidates"] for seed in seeds for row in rows.get((seed, side), []) if row.get("candidates")]
        grown = curves([[Candidate(**one) for one in group] for group in sampled])
        if grown is not None:
            found[scorer] = grown["rows"]
    return found


def training_steps(out: Path, seeds: Sequence[int], name: str) -> list[float]:
    """Steps an answer at each iteration of PPO, mean over seeds."""
    series = []
    for seed in seeds:
        file = out / f"seed_{seed}.{name}" / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        series.append([row["rollout/steps"] for row in lines if row["stage"] == name and "rollout/steps" in row])
    least = min((len(one) for one in series if one), default=0)
    return [float(np.mean([one[place] for one in series if one])) for place in range(least)]


def reward_model(out: Path, seeds: Sequence[int], name: str) -> dict[str, float]:
    """Means over seeds of the measures on held-out labels that are plain numbers."""
    results = [manifest["result"] for seed in seeds if (manifest := _manifest(out / f"seed_{seed}.{name}", name))]
    keys = [key for key, one in (results[0] if results else {}).items() if isinstance(one, float)]
    return {key: float(np.mean([result[key] for result in results if result.get(key) is not None])) for key in keys}


def seconds(run: Path, stage: str) -> float:
    manifest = _manifest(run, stage)
    return float(manifest["seconds"]) if manifest else math.nan


def _manifest(run: Path, stage: str) -> dict[str, Any] | None:
    file = run / stage / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


# --------------------------------------------------------------------------------------------- tables and figures


def as_table(result: Mapping[str, Any]) -> str:
    """Markdown: policies, claims, differences, votes."""
    depths = sorted({depth for one in result["policies"].values() for depth in one["by_depth"]}, key=int)
    lines = _table(
        ["policy", "trained by", "pass@1", "by seed", f"depth {' / '.join(depths)}", "seconds"],
        [
            [f"`{name}`", POLICIES.get(name, ""), f"{one['mean']:.1%}", " ".join(f"{100 * share:.1f}" for share in one["by_seed"]),
             " / ".join(f"{100 * one['by_depth'].get(depth, math.nan):.0f}" for depth in depths), _mean_seconds(one["seconds"])]
            for name, one in result["policies"].items()
        ],
    )  # fmt: skip
    lines += ["", *_table(
        ["claim", "difference", "95 % over problems", "95 % over seeds", "verdict"],
        [
            [one["claim"], *_shown(one["comparison"], result["differences"][one["comparison"]]), "stands" if one["stands"] else "does not stand"]
            for one in result["claims"]
        ],
    )]  # fmt: skip
    claimed = {one["comparison"] for one in result["claims"]}
    lines += ["", *_table(
        ["other differences", "mean", "95 % over problems", "95 % over seeds"],
        [[name, *_shown(name, one)] for name, one in result["differences"].items() if name not in claimed],
    )]  # fmt: skip
    if result["curves"]:
        scorers = list(result["curves"])
        lines += ["", *_table(
            ["samples of SFT", "majority", *(f"{kind}, {scorer}" for scorer in scorers for kind in ("vote", "best")), "any"],
            [
                [str(rows[0]["n"]), f"{rows[0]['majority']['mean']:.1%}",
                 *(f"{row[kind]['mean']:.1%}" for row in rows for kind in ("weighted_vote", "best_of")), f"{rows[0]['pass']['mean']:.1%}"]
                for rows in zip(*result["curves"].values(), strict=True)
            ],
        )]  # fmt: skip
    grown = [f"{name} {steps[0]:.2f} to {steps[-1]:.2f}" for name, steps in result["training_steps"].items()]
    if grown:
        lines += ["", f"Steps an answer, first to last iteration: {', '.join(grown)}."]
    models = {"irm": "pair_accuracy", "prm": "step_auroc", "orm": "within_problem"}
    told = [
        f"{name.upper()} {key} {result['reward_models'][name][key]:.3f}"
        for name, key in models.items()
        if key in result["reward_models"].get(name, {})
    ]
    spent = ", ".join(f"{stage} {_mean_seconds(values)}" for stage, values in result["common_seconds"].items())
    return "\n".join([*lines, "", f"Held-out labels: {', '.join(told)}. Seconds a seed: {spent}."])


def _shown(name: str, found: Mapping[str, Any]) -> list[str]:
    """Mean and both intervals: in points, or in steps."""
    scale, digits = (1, 2) if name.startswith("steps") else (100, 1)

    def ends(pair: Sequence[float]) -> str:
        return "one seed" if math.isnan(pair[0]) else f"{scale * pair[0]:+.{digits}f} to {scale * pair[1]:+.{digits}f}"

    return [f"{scale * found['mean']:+.{digits}f}", ends(found["ci95"]), ends(found["ci95_seeds"])]


def _mean_seconds(values: Sequence[float]) -> str:
    known = [one for one in values if not math.isnan(one)]
    return f"{np.mean(known):.0f}" if known else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]


def figures(result: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SVG file: differences with either interval, votes and best-of-n over n, steps an answer in training."""
    shares = {name: one for name, one in result["differences"].items() if not name.startswith("steps")}
    seeded = {name: one for name, one in shares.items() if not math.isnan(one["ci95_seeds"][0])}
    drawn = {
        "problems": interval_chart("difference, 95 % over problems", {name: (one["mean"], *one["ci95"]) for name, one in shares.items()}),
        "seeds": interval_chart("difference, 95 % over seeds", {name: (one["mean"], *one["ci95_seeds"]) for name, one in seeded.items()}),
        "steps": line_chart(
            "steps an answer while PPO trains",
            {f"mode {mode}": list(enumerate(result["training_steps"].get(name, []), 1)) for mode, name in MODES.items()},
            "iteration",
        ),
    }
    for name, kind in (("vote", "weighted_vote"), ("best", "best_of")) if result["curves"] else ():
        series = {"majority": _points(next(iter(result["curves"].values())), "majority")}
        series |= {scorer: _points(rows, kind) for scorer, rows in result["curves"].items()}
        drawn[name] = line_chart(f"right by {name} of n samples of SFT (95 %)", series, "n", shares=True, doubling=True)
    return {name: standalone(svg) for name, svg in drawn.items() if svg}


MODES = {"A": "ppo_a", "B": "ppo_b", "F": "ppo"}
STYLE = (
    "<style>svg{--c1:#0969da;--c2:#bf3989;--c3:#1a7f37;--c4:#9a6700;background:#fff}text{fill:#1b1f24;font:12px sans-serif}"
    ".a{fill:#59636e;font-size:11px}.g{stroke:#d5dbe1}</style>"
)


def standalone(svg: str) -> str:
    """A chart of the report as a file of its own, with its colours."""
    head, rest = svg.split(">", 1)
    return f"{head.replace('<svg', '<svg xmlns=' + chr(34) + 'http://www.w3.org/2000/svg' + chr(34), 1)}>{STYLE}{rest}"


def _points(rows: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[float, float, float, float]]:
    return [(row["n"], row[kind]["mean"], *row[kind]["ci95"]) for row in rows]
