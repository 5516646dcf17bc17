"""What is a second rank worth? The quickstart's PPO on one process on one core against two processes on two cores, phase by phase.

    python scripts/two_ranks.py RUN [--deepspeed configs/deepspeed/zero1.json] [--iterations 4] [--repeats 2] [--out runs/two_ranks]

RUN: a run directory of the quickstart, finished up to the stage prm. Each process has one thread, each arm its turn in each repeat; the
first iteration is not counted. Prints the seconds of each phase by arm and how many times faster two ranks are, then the same as JSON. What
is missing to 2 is what ranks say to each other, and wait for the slower one. Linux alone: it holds processes to cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from served_rollouts import BASE, config

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("update", "forward", "reward", "rollout")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--deepspeed", type=Path, default=ROOT / "configs" / "deepspeed" / "zero1.json")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/two_ranks"))
    options = parser.parse_args()
    seconds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for ranks in (1, 2):
            seconds[ranks].append(measure(options, ranks, options.out / f"{repeat}_{ranks}"))
    print(f"{'phase':10}{'one rank, s':>12}{'two ranks, s':>13}{'faster':>8}")
    told = {}
    for phase in PHASES:
        one, two = (statistics.median(arm[phase] for arm in seconds[ranks]) for ranks in (1, 2))
        told[phase] = {"one": one, "two": two, "faster": one / two}
        print(f"{phase:10}{one:>12.2f}{two:>13.2f}{one / two:>8.2f}")
    print(json.dumps(told))
    return 0


def measure(options: argparse.Namespace, ranks: int, out: Path) -> dict[str, float]:
    """Median seconds of an iteration, by phase."""
    made = config(options.run, BASE, Path(), options.iterations, out)
    made["stages"]["ppo"] |= {"critic_warmup": 0}
    del made["stages"]["evaluate"]
    made |= {"tracking": {"wandb": "disabled"}, "launch": {"device": "cpu", "processes": ranks}}
    if ranks > 1:
        made["launch"]["deepspeed"] = str(options.deepspeed.resolve())
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:ranks])), sys.executable, "-m", "rlef", "run", str(file)]
    subprocess.run([*command, "--from", "ppo", "--yes"], check=True, env=environment, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [row for row in rows if "time/update" in row][-(options.iterations - 1) :]
    return {phase: statistics.median(row[f"time/{phase}"] for row in counted) for phase in PHASES}


if __name__ == "__main__":
    raise SystemExit(main())
