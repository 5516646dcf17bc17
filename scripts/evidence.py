"""Does it work, and what of it matters? The paper's ablations under one config, seeds paired, with intervals, claims and figures.

    python scripts/evidence.py [--seeds 0 1 2 3 4] [--jobs 1] [--only NAME ...] [--out runs/evidence] [--write-readme] [--set key=value ...]

A seed is made in parts: the stages that all have in common, each reward model, each variant. A part is an ordinary run directory
(OUT/seed_0.ppo_orm) in which the stages of the parts that it needs are links, so nothing is made twice, and the run's fingerprints vouch
that they are the same for all. `--jobs`: parts made at a time, each in a process of its own, as soon as what it needs is there. Resumable:
the same command goes on. `--only` makes these variants alone; the tables show what there is. The last line printed is all as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from evidence_tables import as_table, figures, measured

from reward_models.values import finite
from rlef.config import STAGE_TYPES, Config, DpoStage, PpoStage, SftStage
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.run_dir import write_json

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("problems", "evolve", "respond", "sft", "label")
COUNT, VOTE_COUNT, K = 1000, 300, 16  # held-out problems greedy; of them with k samples

Stages = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """What one process makes of a seed: its stages, behind those of the parts that it needs."""

    stages: Stages
    needs: tuple[str, ...] = ()


def make_parts(config: Config, *, count: int = COUNT, vote_count: int = VOTE_COUNT) -> dict[str, Part]:
    """Everything that is made of a seed, by name; a variant's policy stage is named as the variant.

    RFT, DPO and GRPO get as many answers as PPO, Step-DPO at most as many, and SFT goes on for as many as PPO trains on. `sft_seeds` makes
    SFT's most steps, keeps its best weights as SFT does, and sees no evolved problem.
    """
    sft, ppo, dpo = (config.stages[name] for name in ("sft", "ppo", "dpo"))
    assert isinstance(sft, SftStage) and isinstance(ppo, PpoStage) and isinstance(dpo, DpoStage)
    parts = {
        "common": Part({name: _given(config, name) for name in COMMON}),
        "irm": Part({"irm": _given(config, "irm")}, ("common",)),
        "prm": Part({"prm": _given(config, "prm")}, ("common",)),
        "orm": Part({"orm": _given(config, "prm") | {"kind": "orm"}}, ("common",)),
    }

    # 1. The policies, and what each needs.
    prompts = ppo.iterations * ppo.prompts_per_iteration
    answers = prompts * ppo.samples_per_prompt
    on_policy, pairs, more = _given(config, "ppo"), _given(config, "dpo"), _given(config, "sft")
    pairs |= {"count": prompts, "samples_per_prompt": ppo.samples_per_prompt}
    best = {key: pairs[key] for key in pairs if key in STAGE_TYPES["rft"].model_fields} | {"kind": "rft", "epochs": 2}
    longer = {"init": "sft", "max_steps": max(1, answers // sft.batch_size), "patience": None, "learning_rate": sft.learning_rate / 5}
    alike = {key: value for key, value in on_policy.items() if key in STAGE_TYPES["grpo"].model_fields}
    half = max(2, ppo.samples_per_prompt // 2)  # of a prompt's answers; the others go on from the right steps of one
    both = ("common", "irm", "prm")
    policies: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "ppo": (on_policy, both),
        "ppo_orm": (on_policy | {"irm": "none", "prm": "orm"}, ("common", "orm")),
        "ppo_prm": (on_policy | {"irm": "none"}, ("common", "prm")),
        "ppo_a": (on_policy | {"reward_mode": "min_terminal"}, both),
        "ppo_b": (on_policy | {"reward_mode": "step_sum"}, both),
        "sft_more": (more | longer, ("common",)),
        "sft_seeds": (more | {"data": "seeds", "patience": sft.max_steps}, ("common",)),
        "rft": (best, both),
        "dpo": (pairs, both),
        "step_dpo": (pairs | {"pairs": "steps", "samples_per_prompt": half, "step_samples": half}, both),
        "grpo": (alike | {"kind": "grpo", "learning_rate": ppo.policy_lr}, both),
    }

    # 2. All of them greedily on the same problems; SFT's samples under either reward model.
    evaluate = _given(config, "evaluate") | {"kind": "evaluate", "count": count}
    greedy = evaluate | {"vote_count": 0, "prm": "none"}
    voted = evaluate | {"policies": ["sft"], "vote_count": vote_count, "k": K}
    parts["sft"] = Part({"evaluate": voted | {"prm": "prm"}, "evaluate_orm": voted | {"prm": "orm"}}, ("common", "prm", "orm"))
    return parts | {
        name: Part({name: policy, "evaluate": greedy | {"policies": [name]}}, needs) for name, (policy, needs) in policies.items()
    }


def _given(config: Config, name: str) -> dict[str, Any]:
    """What the config says of a stage, without its defaults."""
    return config.stages[name].model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class Study:
    """The parts, where their runs lie, and how they are started."""

    config: Config
    parts: Mapping[str, Part]
    out: Path

    def make(self, seed: int, name: str, threads: int) -> None:
        """One part of a seed. Raises RuntimeError with the end of its log."""
        run, part = self.out / f"seed_{seed}.{name}", self.parts[name]
        run.mkdir(parents=True, exist_ok=True)
        data = self.stages(name) | {"run": {"seed": seed, "dir": str(run)}}
        for need in part.needs:
            for stage in self.parts[need].stages:
                if not (run / stage).exists():
                    (run / stage).symlink_to(Path("..") / f"seed_{seed}.{need}" / stage)
        file, log = run.with_name(f"{run.name}.yaml"), run.with_name(f"{run.name}.log")
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
        with log.open("a") as lines:
            done = subprocess.run([sys.executable, "-m", "rlef", "run", str(file)], env=environment, stdout=lines, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"{run.name} ended with code {done.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")

    def stages(self, name: str) -> dict[str, Any]:
        """The config of a part."""
        needed = [stages for need in self.parts[name].needs for stages in self.parts[need].stages.items()]
        return self.config.model_dump(mode="json", exclude_unset=True) | {"stages": dict(needed) | self.parts[name].stages}

    def make_all(self, seeds: Sequence[int], chosen: Collection[str], jobs: int, cores: int) -> list[str]:
        """Make the chosen parts and what they need, `jobs` at a time. Returns what failed, and how; what needs it is left out."""
        wanted = {need for name in chosen for need in (name, *self.parts[name].needs)}
        left = [(seed, name) for name in self.parts if name in wanted for seed in seeds]
        done: set[tuple[int, str]] = set()
        running: dict[Future[None], tuple[int, str]] = {}
        failed, began = [], time.monotonic()
        with ThreadPoolExecutor(jobs) as pool:
            while True:
                ready = [(seed, name) for seed, name in left if all((seed, need) in done for need in self.parts[name].needs)]
                ready = ready[: jobs - len(running)]
                threads = max(1, cores // max(1, len(running) + len(ready)))
                for seed, name in ready:
                    left.remove((seed, name))
                    running[pool.submit(self.make, seed, name, threads)] = seed, name
                if not running:
                    return [*failed, *(f"seed_{seed}.{name}: not made, what it needs is not there" for seed, name in left)]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    seed, name = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done.add((seed, name))
                    else:
                        failed.append(str(error))
                    print(
                        f"{time.monotonic() - began:6.0f} s  seed_{seed}.{name} {'failed' if error else 'done'}, {len(left)} to start",
                        flush=True,
                    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="e.g. sft ppo ppo_orm")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=1, help="parts made at a time, which share the cores")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="to be shared")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out problems, greedy")
    parser.add_argument("--vote-count", type=int, default=VOTE_COUNT, help=f"the first of them, {K} samples each, for votes")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--write-readme", action="store_true", help="put the tables between the evidence markers of scripts/README.md")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
    except UserError as error:
        parser.error(str(error))
    if missing := {*COMMON, "irm", "prm", "ppo", "dpo", "evaluate"} - config.stages.keys():
        parser.error(f"--config: no stage {', '.join(sorted(missing))}, from which the variants are made")
    parts = make_parts(config, count=options.count, vote_count=options.vote_count)
    variants = [name for name, part in parts.items() if "evaluate" in part.stages]
    if unknown := set(options.only or ()) - set(variants):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(variants)}")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = Study(config, parts, options.out).make_all(options.seeds, options.only or variants, options.jobs, options.cores)

    result = measured(options.out, options.seeds, variants, config)
    table = as_table(result)
    write_json(options.out / "results.json", result)
    (options.out / "table.md").write_text(table + "\n")
    for name, figure in figures(result).items():
        (options.out / f"{name}.svg").write_text(figure)
    print(table)
    if options.write_readme:
        write_readme(ROOT / "scripts" / "README.md", table)
    for line in failed:
        print(line, file=sys.stderr)
    print(json.dumps(finite(result)))
    return int(bool(failed))


def write_readme(file: Path, table: str) -> None:
    begin, end = "<!-- evidence:begin -->", "<!-- evidence:end -->"
    text = file.read_text()
    head, rest = text.split(begin)
    file.write_text(head + begin + "\n" + table + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    raise SystemExit(main())
