"""PPO with vLLM as its sampler against PPO that samples from its own model: same start, rewards and prompts; is the outcome the same?

    python scripts/served_rollouts.py RUN [RUN ...] [--arm served] [--iterations 20] [--folder .endpoint] [--out runs/served_rollouts]

RUN: run directories of the quickstart, finished up to the stage prm (one a seed). Makes, once, an environment for vLLM on a CPU in the
folder; rlef itself starts the server there (--arm colocated: the engine in its own process) and hands it the weights before each
iteration. Prints, by run and arm, held-out accuracy with
its interval, and how far the log-probabilities of the probes after the syncs and of all samples were off; then the paired difference of
accuracy over all runs. Its interval knows the problems alone: the arms draw other samples, and two runs that differ in that end apart, too,
so give several runs. Resumable. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from vllm_environment import install, together, variables

from reward_models.statistics import paired_difference
from rlef.load_config import load_config
from rlef.records import Outcome, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
BASE = "in_process"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--arm", choices=("served", "colocated"), default="served", help="where vLLM runs")
    parser.add_argument("--iterations", type=int, help="of PPO (default: the quickstart's)")
    parser.add_argument("--folder", type=Path, default=Path(".endpoint"), help="the server's environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is told first, e.g. with --index-url of CPU builds")
    parser.add_argument("--out", type=Path, default=Path("runs/served_rollouts"))
    options = parser.parse_args()
    vllm = install(options.folder.resolve(), options.torch)
    rows = [measure(run, arm, vllm, options) for run in options.runs for arm in (BASE, options.arm)]
    print(f"{'run':12}{'arm':12}{'held out':>9}  {'95 %':15}{'probe':>9}{'most':>9}{'samples':>9}{'rollout s':>11}{'sync s':>8}")
    for row in rows:
        low, high = row["ci95"]
        print(
            f"{row['run']:12}{row['arm']:12}{row['pass@1']:>9.1%}  {f'{low:.1%} .. {high:.1%}':15}{row['probe_mean']:>9.1e}{row['probe_most']:>9.1e}"
            f"{row['logprob_gap']:>9.1e}{row['rollout_s']:>11.1f}{row['sync_s']:>8.1f}"
        )
    right = {arm: [value for row in rows if row["arm"] == arm for value in row.pop("right")] for arm in (BASE, options.arm)}
    difference = paired_difference(right[options.arm], right[BASE])
    low, high = difference["ci95"]
    print(f"{options.arm} minus in process: {100 * difference['mean']:+.1f} points ({100 * low:+.1f} .. {100 * high:+.1f})")
    print(json.dumps({"difference": difference, "rows": rows}))
    return 0


def config(run: Path, arm: str, vllm: Path, iterations: int | None, out: Path) -> dict[str, Any]:
    """The quickstart's PPO and evaluation on what `run` has made."""
    shipped = load_config(ROOT / "configs" / "quickstart.yaml").model_dump(mode="json", exclude_unset=True)
    made = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    inputs = {"init": "sft", "prompts": "respond", "irm": "irm", "prm": "prm"}
    ppo = shipped["stages"]["ppo"] | {key: str((run / stage).resolve()) for key, stage in inputs.items()}
    if iterations is not None:
        ppo["iterations"] = iterations
    if arm != BASE:
        where = {"vllm": str(vllm)} if arm == "served" else {"colocated": True}
        ppo["rollout"] = where | {"options": f"--max-model-len {made['model']['random']['max_positions']}"}
    evaluate = {"count": 1000, "vote_count": 0, "max_tokens": ppo["max_tokens"]}
    stages = {"problems": made["stages"]["problems"], "ppo": ppo, "evaluate": evaluate}
    return {"run": {"dir": str(out), "seed": made["run"]["seed"]}, "model": made["model"], "stages": stages}


def measure(run: Path, arm: str, vllm: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run of PPO, and what it came to."""
    out = options.out / f"{run.name}_{arm}"
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(config(run, arm, vllm, options.iterations, out), sort_keys=False), encoding="utf-8")
    environment = variables(options.folder) | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }
    python = str(together(options.folder.resolve())) if arm == "colocated" else sys.executable
    subprocess.run([python, "-m", "rlef", "run", str(file)], check=True, env=environment)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [step for step in steps if "rollout/logprob_gap" in step]
    probes = [step.get("rollout/sync_difference", 0.0) for step in steps]
    found = json.loads((out / "evaluate" / "results.json").read_text(encoding="utf-8"))["ppo"]
    return {
        "run": run.name,
        "arm": arm,
        "iterations": len(steps),
        "pass@1": found["pass@1"],
        "ci95": found["ci95"],
        "probe_mean": statistics.mean(probes),
        "probe_most": max(probes),
        "logprob_gap": statistics.mean(step["rollout/logprob_gap"] for step in steps),
        "rollout_s": sum(step["time/rollout"] for step in steps),
        "sync_s": sum(step["time/sync"] for step in steps),
        "right": [row.right for row in read_jsonl(out / "evaluate" / "samples_ppo.jsonl", Outcome)],
    }


if __name__ == "__main__":
    raise SystemExit(main())
