"""Does feedback from the policy keep prompts that it can learn from? Evolution by feedback against evolution at random, same budget.

    python scripts/active_evolution.py RUN [RUN ...] [--rounds 4] [--per-round 1000] [--out runs/active_evolution]

RUN: run directories of the quickstart, finished up to the stage prm (one a seed). Both arms evolve the same seeds with the same number
of evolutions, weights and teacher; the feedback arm also samples the policy. Then the kept prompts of both are measured with fresh
samples, and their shares within the band are compared: by the measure itself (agreement with the PRM's vote, and its belief), by plain agreement with the
majority, and by the known answers, which neither arm saw. Resumable. Prints a table; the last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlef.config import Config, EvolveStage
from rlef.evolution.operations import in_band
from rlef.load_config import load_config
from rlef.records import Problem, read_jsonl
from rlef.rl.difficulty import Difficulty
from rlef.stages.evolve import read_pool

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("random", "choice", "feedback")  # choice: the same evolutions as feedback, with what fell outside the band kept
MEASURES = {"measure": {}, "agreement": {"prm": None}, "truth": {"prm": None, "use_answers": True}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--per-round", type=int, default=1000)
    parser.add_argument("--count", type=int, default=400, help="kept prompts of each arm that are measured")
    parser.add_argument("--samples", type=int, default=16, help="fresh answers to each")
    parser.add_argument("--out", type=Path, default=Path("runs/active_evolution"))
    options = parser.parse_args()
    rows = [row for run in options.runs for row in compare(run, options)]
    print(f"{'seed':>4}  {'arm':9}{'kept':>6}" + "".join(f"{name:>12}" for name in MEASURES))
    for row in rows:
        print(f"{row['seed']:>4}  {row['arm']:9}{row['kept']:>6}" + "".join(f"{row[name]:>12.1%}" for name in MEASURES))
    shares = {arm: {name: _mean([row[name] for row in rows if row["arm"] == arm]) for name in MEASURES} for arm in ARMS}
    points = {name: 100 * (shares["feedback"][name] - shares["random"][name]) for name in MEASURES}
    ratio = {name: shares["feedback"][name] / max(1e-9, shares["random"][name]) for name in MEASURES}
    print("share of kept prompts within the band, mean over seeds; feedback against random:")
    for name in MEASURES:
        print(
            f"  {name:10} {shares['random'][name]:.1%} -> {shares['feedback'][name]:.1%}: {points[name]:+.1f} points, {ratio[name]:.2f} times"
        )
    print(json.dumps({"in_band": shares, "points": points, "ratio": ratio, "rows": rows}))
    return 0


def compare(run: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    config = evolved(run, options)
    stage: Any = config.stages["feedback"]
    folder = Path(str(config.run.dir))
    kept = {
        "random": list(read_jsonl(folder / "random" / "evolved.jsonl", Problem)),
        "choice": read_pool(folder / "feedback"),
        "feedback": list(read_jsonl(folder / "feedback" / "evolved.jsonl", Problem)),
    }
    rows: list[dict[str, Any]] = [{"seed": config.run.seed, "arm": arm, "kept": len(kept[arm])} for arm in ARMS]
    fresh = config.model_copy(update={"run": config.run.model_copy(update={"seed": config.run.seed + 1_000_000})})
    for name, changes in MEASURES.items():
        settings = stage.model_copy(update={"samples": options.samples, "use_answers": changes.get("use_answers", False)})
        difficulty = Difficulty(run / "sft", run / "prm" if "prm" not in changes else None, settings, fresh)
        for row in rows:
            problems = random.Random(0).sample(kept[row["arm"]], min(options.count, len(kept[row["arm"]])))
            # To a flawed problem there is no right answer: the policy passes none.
            rates = [
                rate if name != "truth" or one.answer else 0.0 for one, rate in zip(problems, difficulty.measure(problems), strict=True)
            ]
            row[name] = _share(rates, settings)
    return rows


def evolved(run: Path, options: argparse.Namespace) -> Config:
    """Both arms, evolved by the command line in a run directory of their own."""
    data = yaml.safe_load((run / "config.yaml").read_text())
    base = next(stage for stage in data["stages"].values() if stage["kind"] == "evolve")
    common = base | {"problems": str(run / "problems"), "pool": "none", "rounds": options.rounds, "per_round": options.per_round}
    feedback = common | {"choose": "feedback", "policy": str(run / "sft"), "prm": str(run / "prm"), "max_tokens": 64}
    out = options.out / run.name
    data["run"] = data["run"] | {"dir": str(out)}
    data["stages"] = {"random": common, "feedback": feedback}
    out.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    command = [sys.executable, "-m", "rlef", "run", str(file)]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path.cwd(), env=os.environ | {"PYTHONPATH": str(ROOT)})
    return load_config(file)


def _share(rates: Sequence[float | None], settings: EvolveStage) -> float:
    return _mean([float(rate is not None and in_band(rate, settings.band)) for rate in rates])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


if __name__ == "__main__":
    sys.exit(main())
