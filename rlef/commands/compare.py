"""`rlef compare`: two runs beside each other in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "compare",
        help="show how two runs differ: results with intervals, settings, versions, time and cost",
        epilog="example: rlef compare runs/quickstart runs/seed_1\nexample: rlef report runs/quickstart runs/seed_1",
    )
    command.add_argument("first", metavar="RUN", help="run directory")
    command.add_argument("second", metavar="RUN", help="run directory; differences are this one minus the first")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Only reads."""
    from reward_models.pages import as_text
    from rlef.views.compare import measured, tables

    first, second = measured(Path(options.first)), measured(Path(options.second))
    print(
        "\n\n".join(as_text(table) for table in tables(first, second)) or "neither run has a finished stage, and their settings are equal"
    )
    if not (first.outcomes.keys() & second.outcomes.keys()):
        print("\nno policy was evaluated in both: nothing to hold against each other yet")
    return 0
