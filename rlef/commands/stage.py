"""`rlef STAGE`: one stage alone, named by its kind."""

from __future__ import annotations

import argparse

from rlef.commands import run
from rlef.commands.arguments import config_arguments, redo_argument

STAGES = ("problems", "method", "evolve", "respond", "sft", "label", "irm", "prm", "orm", "ppo", "dpo", "grpo", "rft", "evaluate")


def add(commands: argparse._SubParsersAction) -> None:
    for stage in STAGES:
        command = commands.add_parser(
            stage, help=f"run the stage {stage} alone", epilog=f"example: rlef {stage} configs/quickstart.yaml run.seed=1"
        )
        config_arguments(command)
        redo_argument(command)
        command.set_defaults(run=run.run, start=None, only=stage)
