"""`rlef report`: a page of a run, finished or not, or of several beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from reward_models import disk
from reward_models.nearest import meant_path
from rlef.commands import run as run_command
from rlef.commands.arguments import redo_argument
from rlef.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "report",
        help="write the page of a run, or of several beside each other",
        epilog="example: rlef report runs/quickstart\nexample: rlef report runs/quickstart runs/seed_1 --out both.html",
    )
    command.add_argument("config", metavar="RUN", help="run directory; of a config file its stage report is run")
    command.add_argument("overrides", nargs="*", metavar="RUN", help="run directories to hold the first against")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="HTML file (default: report.html in the run, comparison.html in the first of several)"
    )
    redo_argument(command)
    command.set_defaults(run=run, commands=(), start=None, only="report")


def run(options: argparse.Namespace) -> int:
    """Of run directories; of a config file the stage is run."""
    folder = Path(options.config)
    if folder.is_file():
        return run_command.run(options)
    folders = [folder, *map(Path, options.overrides)]
    for one in folders:
        if not one.is_dir():
            raise UserError(f"{one}: no such run directory{meant_path(one)}", fix="give run directories, e.g. runs/quickstart")
    from rlef.report.page import write_report

    with disk.told(folder, but=UserError):
        print(write_report(*folders, out=options.out))
    return 0
