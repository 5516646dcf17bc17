"""Does it work, and what of it matters? The paper's ablations under one config, seeds paired, with intervals, claims and figures.

    python scripts/evidence.py [--seeds 0 1 2 3 4] [--jobs 1] [--only NAME ...] [--out runs/evidence] [--write-readme] [--set key=value ...]

A seed's problems, SFT and reward models are made once (OUT/seed_0, an ordinary run directory). Each variant is a run directory of its own
beside it (OUT/seed_0.ppo_orm) in which these stages are links: only the variant's stages run there, and the run's fingerprints vouch that
the rest is the same. `--jobs`: rlef processes at a time, first one a seed, then one a variant. Resumable: the same command goes on, and
finished stages are not repeated. `--only` runs these variants alone; the tables show what there is. The last line printed is all as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from evidence_tables import as_table, figures, measured

from rlef.config import STAGE_TYPES, Config, DpoStage, PpoStage, SftStage
from rlef.load_config import load_config

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("problems", "evolve", "respond", "sft", "label", "irm", "prm")
COUNT, VOTE_COUNT, K = 1000, 300, 16  # held-out problems greedy; of them with k samples

Stages = dict[str, dict[str, Any]]


def shared_stages(config: Config) -> Stages:
    """What all variants of a seed have in common: the config's stages up to the reward models, and an outcome model on the same labels."""
    stages = {name: _given(config, name) for name in SHARED}
    return stages | {"orm": stages["prm"] | {"kind": "orm"}}


def variants(config: Config, *, count: int = COUNT, vote_count: int = VOTE_COUNT) -> dict[str, Stages]:
    """Variant -> the stages that it has beside the shared ones; a policy stage is named as its variant.

    RFT, DPO, Step-DPO and GRPO get as many answers as PPO, and SFT goes on for as many as PPO trains on. `sft_seeds` has SFT's most steps,
    keeps its best weights as SFT does, and sees no evolved problem.
    """
    sft, ppo, dpo = (config.stages[name] for name in ("sft", "ppo", "dpo"))
    assert isinstance(sft, SftStage) and isinstance(ppo, PpoStage) and isinstance(dpo, DpoStage)
    prompts = ppo.iterations * ppo.prompts_per_iteration
    answers = prompts * ppo.samples_per_prompt
    ours, pairs, more = _given(config, "ppo"), _given(config, "dpo"), _given(config, "sft")
    pairs |= {"count": prompts, "samples_per_prompt": ppo.samples_per_prompt}
    best = {key: pairs[key] for key in pairs if key in STAGE_TYPES["rft"].model_fields} | {"kind": "rft", "epochs": 2}
    policies: Stages = {
        "ppo": ours,
        "ppo_orm": ours | {"irm": "none", "prm": "orm"},
        "ppo_prm": ours | {"irm": "none"},
        "ppo_a": ours | {"reward_mode": "min_terminal"},
        "ppo_b": ours | {"reward_mode": "step_sum"},
        "sft_more": more
        | {"init": "sft", "max_steps": max(1, answers // sft.batch_size), "patience": None, "learning_rate": sft.learning_rate / 5},
        "sft_seeds": more | {"data": "seeds", "patience": sft.max_steps},
        "rft": best,
        "dpo": pairs,
    }
    if "pairs" in DpoStage.model_fields:
        policies["step_dpo"] = pairs | {"pairs": "steps"}
    if "grpo" in STAGE_TYPES:
        alike = {key: value for key, value in ours.items() if key in STAGE_TYPES["grpo"].model_fields}
        policies["grpo"] = alike | {"kind": "grpo", "learning_rate": ppo.policy_lr}
    evaluate = _given(config, "evaluate") | {"kind": "evaluate", "count": count}
    greedy = evaluate | {"vote_count": 0, "prm": "none"}
    voted = evaluate | {"policies": ["sft"], "vote_count": vote_count, "k": K}
    made: dict[str, Stages] = {"sft": {"evaluate": voted | {"prm": "prm"}, "evaluate_orm": voted | {"prm": "orm"}}}
    return made | {name: {name: policy, "evaluate": greedy | {"policies": [name]}} for name, policy in policies.items()}


def _given(config: Config, name: str) -> dict[str, Any]:
    """What the config says of a stage, without its defaults."""
    return config.stages[name].model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class Study:
    """Where the runs lie and how they are started."""

    config: Config
    out: Path
    threads: int

    def shared(self, seed: int, threads: int) -> None:
        """The seed's common stages."""
        self._run(f"seed_{seed}", seed, shared_stages(self.config), threads)

    def variant(self, seed: int, name: str, own: Stages) -> None:
        """One variant of a seed, in a directory where the common stages are links."""
        run = self.out / f"seed_{seed}.{name}"
        run.mkdir(parents=True, exist_ok=True)
        common = shared_stages(self.config)
        for stage in common:
            if not (run / stage).exists():
                (run / stage).symlink_to(Path("..") / f"seed_{seed}" / stage)
        self._run(run.name, seed, common | own, self.threads)

    def _run(self, name: str, seed: int, stages: Stages, threads: int) -> None:
        data = self.config.model_dump(mode="json", exclude_unset=True) | {"stages": stages}
        data["run"] = {"seed": seed, "dir": str(self.out / name)}
        file = self.out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
        with (self.out / f"{name}.log").open("a") as log:
            done = subprocess.run([sys.executable, "-m", "rlef", "run", str(file)], env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(
                f"{name} ended with code {done.returncode}; its end:\n" + "".join((self.out / f"{name}.log").read_text()[-2000:])
            )


def run_all(study: Study, seeds: Sequence[int], chosen: dict[str, Stages], jobs: int) -> list[str]:
    """Run everything, `jobs` processes at a time: a seed's variants as soon as its common stages are there. Returns what failed, and how."""
    began, failed = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        shares = max(study.threads, jobs // len(seeds))
        waiting: dict[Future[None], tuple[int, str]] = {pool.submit(study.shared, seed, shares): (seed, "") for seed in seeds}
        while waiting:
            done = next(as_completed(waiting))
            seed, name = waiting.pop(done)
            if error := done.exception():
                failed.append(str(error))
            elif not name:
                waiting |= {pool.submit(study.variant, seed, one, own): (seed, one) for one, own in chosen.items()}
            state = "failed" if done.exception() else "done"
            print(f"{time.monotonic() - began:6.0f} s  seed {seed} {name or 'common stages'}: {state}; {len(waiting)} left", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="e.g. sft ppo ppo_orm")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=1, help="rlef processes at a time")
    parser.add_argument("--threads", type=int, help="of a process (default: the cores shared among the jobs)")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out problems, greedy")
    parser.add_argument("--vote-count", type=int, default=VOTE_COUNT, help=f"the first of them, {K} samples each, for votes")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--write-readme", action="store_true", help="put the tables between the evidence markers of README.md")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    every = variants(config, count=options.count, vote_count=options.vote_count)
    if unknown := set(options.only or ()) - every.keys():
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    options.out.mkdir(parents=True, exist_ok=True)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    chosen = {name: own for name, own in every.items() if options.only is None or name in options.only}
    failed = run_all(Study(config, options.out, threads), options.seeds, chosen, options.jobs)

    result = measured(options.out, options.seeds, list(every), config)
    table = as_table(result)
    (options.out / "results.json").write_text(json.dumps(result, indent=2))
    (options.out / "table.md").write_text(table + "\n")
    for name, figure in figures(result).items():
        (options.out / f"{name}.svg").write_text(figure)
    print(table)
    if options.write_readme:
        write_readme(ROOT / "README.md", table)
    print("\n".join(failed), file=sys.stderr)
    print(json.dumps(result))
    return int(bool(failed))


def write_readme(file: Path, table: str) -> None:
    begin, end = "<!-- evidence:begin -->", "<!-- evidence:end -->"
    text = file.read_text()
    head, rest = text.split(begin)
    file.write_text(head + begin + "\n" + table + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    raise SystemExit(main())
