"""Does it work? Several seeds of the quickstart with its baselines, paired over problems; a table and one JSON line.

    python scripts/evidence.py [--seeds 0 1 2] [--out runs/evidence] [--jobs 1] [--write-readme] [--set key=value ...]

Resumable: each seed is an ordinary run directory, finished stages are not repeated. Besides the quickstart's stages it trains
`sft_continued` (same data, as many more optimiser steps as PPO's wall time buys at SFT's measured speed) and `rft` (best-of-n
distillation by the same rewards).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reward_models.statistics import mean_interval

ROOT = Path(__file__).resolve().parents[1]
BEFORE_PPO = ("problems", "evolve", "respond", "sft", "label", "irm", "prm")
COMPARISONS = {
    "ppo_minus_sft": ("ppo", "sft"),
    "ppo_minus_sft_continued": ("ppo", "sft_continued"),
    "ppo_minus_rft": ("ppo", "rft"),
    "dpo_minus_sft": ("dpo", "sft"),
}
POLICIES = ("sft", "sft_continued", "rft", "dpo", "ppo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/evidence")
    parser.add_argument("--jobs", type=int, default=1, help="seeds run at a time; each then has its share of the cores")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--write-readme", action="store_true", help="put the table between the evidence markers of README.md")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(lambda seed: run_seed(options.config, seed, out, options.overrides, options.jobs), options.seeds))
    result = pool_results(runs)
    table = as_table(runs, result)
    (out / "evidence.json").write_text(json.dumps(result, indent=2))
    print(table)
    if options.write_readme:
        write_readme(ROOT / "README.md", table)
    print(json.dumps(result))
    return 0


def run_seed(config: str, seed: int, out: Path, overrides: Sequence[str], jobs: int) -> Path:
    """One run directory with every stage finished."""
    run = out / f"seed_{seed}"
    file = out / f"seed_{seed}.yaml"
    data = yaml.safe_load(Path(config).read_text())
    stages = data["stages"]
    sft, dpo = dict(stages["sft"]), dict(stages["dpo"])
    evaluate = {**(stages.pop("evaluate") or {}), "count": 1000, "vote_count": 300, "policies": list(POLICIES)}
    stages.pop("report", None)
    rft = {key: dpo[key] for key in ("count", "samples_per_prompt", "max_tokens", "batch_size", "micro_batch_size") if key in dpo}
    stages["rft"] = rft | {"learning_rate": dpo["learning_rate"], "epochs": 2}
    stages["sft_continued"] = sft | {"kind": "sft", "init": "sft", "patience": None, "learning_rate": sft["learning_rate"] / 5}
    stages["evaluate"] = evaluate
    stages["report"] = {}
    data["run"] = {"seed": seed, "dir": str(run)}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    environment = os.environ | {"WANDB_MODE": "disabled"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))

    def rlef(*arguments: str) -> None:
        command = [sys.executable, "-m", "rlef", *arguments]
        with (out / f"seed_{seed}.log").open("a") as log:
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)

    for stage in (*BEFORE_PPO, "ppo"):
        rlef("run", str(file), *overrides, "--only", stage)
    manifests = {stage: json.loads((run / stage / "manifest.json").read_text()) for stage in ("sft", "ppo")}
    speed = manifests["sft"]["result"]["steps"] / manifests["sft"]["result"]["train_seconds"]
    steps = max(1, round(manifests["ppo"]["seconds"] * speed))
    chosen = run / "sft_continued_steps.txt"  # fixed at the first run, so that a later one does not redo the stage
    if not chosen.is_file():
        chosen.write_text(str(steps))
    rlef("run", str(file), *overrides, f"sft_continued.max_steps={chosen.read_text()}")
    return run


def rows_of(run: Path, policy: str) -> list[dict[str, Any]]:
    with (run / "evaluate" / f"samples_{policy}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def pool_results(runs: Sequence[Path]) -> dict[str, Any]:
    """Differences pooled over seeds: problems are resampled within each seed; the seeds' own means stand beside."""
    pooled: dict[str, Any] = {}
    for name, (first, second) in COMPARISONS.items():
        per_seed = [differences(rows_of(run, first), rows_of(run, second), "right") for run in runs]
        pooled[name] = pool(per_seed)
    per_seed = []
    for run in runs:
        voted = [row for row in rows_of(run, "sft") if "prm_vote" in row]
        per_seed.append(np.array([float(row["prm_vote"]) - float(row["majority"]) for row in voted]))
    pooled["prm_vote_minus_majority"] = pool(per_seed)
    metrics = {name: [json.loads((run / name / "manifest.json").read_text())["result"] for run in runs] for name in ("irm", "prm")}
    return {
        "pooled": pooled,
        "irm": {
            "pair_accuracy": mean([row["pair_accuracy"] for row in metrics["irm"]]),
            "by_flaw": by_key([row["by_flaw"] for row in metrics["irm"]]),
        },
        "prm": {
            "step_auroc": mean([row["step_auroc"] for row in metrics["prm"]]),
            "by_depth": by_key([row["by_depth"] for row in metrics["prm"]]),
        },
    }


def differences(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Per problem, paired by id."""
    other = {row["problem_id"]: row for row in second}
    return np.array([float(row[key]) - float(other[row["problem_id"]][key]) for row in first])


def pool(per_seed: Sequence[np.ndarray]) -> dict[str, Any]:
    return mean_interval(np.concatenate(per_seed)) | {"per_seed": [float(values.mean()) for values in per_seed]}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def by_key(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.nanmean([row[key] for row in rows if key in row])) for key in sorted({key for row in rows for key in row})}


def as_table(runs: Sequence[Path], result: dict[str, Any]) -> str:
    """Markdown: policies, differences, reward models."""
    lines = [
        "| policy | " + " | ".join(f"seed {run.name.removeprefix('seed_')}" for run in runs) + " | mean pass@1 |",
        "|---" * (len(runs) + 2) + "|",
    ]
    for policy in POLICIES:
        shares = [float(np.mean([row["right"] for row in rows_of(run, policy)])) for run in runs]
        lines.append(f"| {policy} | " + " | ".join(f"{share:.1%}" for share in shares) + f" | {np.mean(shares):.1%} |")
    lines += ["", "| difference | mean | 95 % over problems | by seed |", "|---|---|---|---|"]
    for name, row in result["pooled"].items():
        low, high = row["ci95"]
        lines.append(
            f"| {name.replace('_', ' ')} | {row['mean']:+.3f} | {low:+.3f} to {high:+.3f} | {', '.join(f'{value:+.3f}' for value in row['per_seed'])} |"
        )
    flaws = ", ".join(f"{kind} {value:.2f}" for kind, value in result["irm"]["by_flaw"].items())
    depths = ", ".join(f"{depth}: {value:.2f}" for depth, value in result["prm"]["by_depth"].items())
    lines += [
        "",
        f"IRM pair accuracy {result['irm']['pair_accuracy']:.3f} ({flaws}). PRM step AUROC {result['prm']['step_auroc']:.3f} (by depth {depths}).",
    ]
    return "\n".join(lines)


def write_readme(file: Path, table: str) -> None:
    begin, end = "<!-- evidence:begin -->", "<!-- evidence:end -->"
    text = file.read_text()
    head, rest = text.split(begin)
    file.write_text(head + begin + "\n" + table + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    raise SystemExit(main())
