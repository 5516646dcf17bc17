"""`rlef report`: report.html of a run, finished or not."""

from __future__ import annotations

import argparse
from pathlib import Path

from reward_models import disk
from reward_models.nearest import meant_path
from rlef.commands import run as run_command
from rlef.commands.arguments import config_arguments, redo_argument
from rlef.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("report", help="write report.html of a run directory", epilog="example: rlef report runs/quickstart")
    config_arguments(command)
    redo_argument(command)
    command.set_defaults(run=run, commands=(), start=None, only="report")


def run(options: argparse.Namespace) -> int:
    """Of a run directory; of a config file the stage is run."""
    folder = Path(options.config)
    if not folder.exists():
        raise UserError(f"{folder}: no such run directory{meant_path(folder)}", fix="give a run directory, e.g. runs/quickstart")
    if not folder.is_dir():
        return run_command.run(options)
    from rlef.stages.report import write_report

    with disk.told(folder, but=UserError):
        print(write_report(folder))
    return 0
