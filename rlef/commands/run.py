"""`rlef run`: all stages that are not done, on one machine or many."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reward_models.nearest import meant
from rlef.commands.arguments import config_arguments, redo_argument
from rlef.errors import UserError

if TYPE_CHECKING:
    from rlef.config import Config
    from rlef.processes.nodes import Lead
    from rlef.run_dir import RunDir


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "run", help="run all stages that are not done", epilog="example: rlef run configs/quickstart.yaml run.seed=1 run.dir=runs/seed_1"
    )
    config_arguments(command)
    command.add_argument("--from", dest="start", metavar="STAGE", help="redo this stage and all after it")
    command.add_argument("--only", metavar="STAGE", help="run this stage alone")
    redo_argument(command)
    command.set_defaults(run=run, commands=())  # commands: where the stage's name stood in the place of one


def run(options: argparse.Namespace) -> int:
    """The first machine runs the stages; the others do what it tells them."""
    from rlef.load_config import load_config

    config = load_config(options.config, options.overrides)
    if options.commands and options.only not in config.stages:
        hint = meant(options.only, [*config.stages, *options.commands])
        raise UserError(f"{options.only}: neither a command nor a stage of {options.config}{hint}", fix="`rlef --help` lists the commands")
    if len(config.launch.slots) == 1:
        return work(config, options)
    from rlef.hosts import own_rank
    from rlef.processes.nodes import Follower, Lead

    node = own_rank(config.launch, os.environ)
    if node > 0:
        return Follower(config.launch, node).run()
    with Lead(config.launch) as lead:
        return work(config, options, lead)


def work(config: Config, options: argparse.Namespace, lead: Lead | None = None) -> int:
    """Run the stages that are asked for, and show what they made."""
    from rlef import pipeline
    from rlef.config import WITHOUT_MODEL

    done = pipeline.run(config, start=options.start, only=options.only, yes=options.yes, lead=lead)
    data_alone = all(stage.kind in WITHOUT_MODEL for stage in config.stages.values())
    for name in [options.only] if options.only is not None else config.stages if data_alone else ():
        _show(config, done, name)
    report = done.root / "report.html"
    print(f"\nrun directory: {done.root}" + (f"\nreport: {report}" if report.is_file() else ""))
    return 0


def _show(config: Config, done: RunDir, name: str) -> None:
    """The table of a stage that made data."""
    from rlef import pipeline
    from rlef.views import tables

    manifest, kind = done.manifest(name), config.stages[name].kind
    if manifest is not None and kind == "evolve":
        sources = pipeline.resolve_inputs(config, name)
        parents = [done.stage(one) if one in config.stages else Path(one) for key, one in sources.items() if key in ("problems", "pool")]
        print(tables.evolve_table(manifest.result, done.stage(name), parents))
    elif manifest is not None and kind == "label":
        print(tables.label_table(manifest.result, done.stage(name)))
