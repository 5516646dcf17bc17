"""`rlef STAGE`: one stage alone, named by its kind."""

from __future__ import annotations

import argparse

from rlef.commands import run
from rlef.commands.arguments import config_arguments, redo_argument

QUICKSTART = "configs/quickstart.yaml"
STAGES = {
    "problems": ("collect seeds and held-out problems", f"{QUICKSTART} problems.seeds=200"),
    "method": ("search better templates for a chat teacher's operations", "configs/wizardmath_7b.yaml stages.method.steps=5"),
    "evolve": ("evolve problems from the seeds", f"{QUICKSTART} evolve.rounds=2"),
    "respond": ("have the teacher answer evolved problems", f"{QUICKSTART} respond.min_agreement=0.5"),
    "sft": ("train the policy by imitation", f"{QUICKSTART} sft.learning_rate=0.0005"),
    "label": ("rank instructions and judge the steps of solutions", f"{QUICKSTART} label.perturbed=0"),
    "irm": ("train the instruction reward model", f"{QUICKSTART} irm.epochs=1"),
    "prm": ("train the process reward model", f"{QUICKSTART} prm.epochs=1"),
    "orm": ("train an outcome reward model, to compare with", f"{QUICKSTART} stages.orm.epochs=1"),
    "ppo": ("train the policy by PPO on the rewards", f"{QUICKSTART} ppo.iterations=40"),
    "dpo": ("train the policy by DPO on pairs of its answers", f"{QUICKSTART} dpo.beta=0.05"),
    "grpo": ("train the policy by GRPO on the rewards", f"{QUICKSTART} stages.grpo.iterations=20"),
    "rft": ("train the policy on the best of its answers", f"{QUICKSTART} stages.rft.count=1000"),
    "evaluate": ("measure all policies on held-out problems", f"{QUICKSTART} evaluate.count=1000"),
}


def add(commands: argparse._SubParsersAction) -> None:
    for stage, (purpose, example) in STAGES.items():
        command = commands.add_parser(stage, help=f"the stage alone: {purpose}", epilog=f"example: rlef {stage} {example}")
        config_arguments(command)
        redo_argument(command)
        command.set_defaults(run=run.run, commands=(), start=None, only=stage)
