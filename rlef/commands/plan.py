"""`rlef plan`: what each stage needs of a GPU and what fits. Nothing is run, loaded or written."""

from __future__ import annotations

import argparse

from rlef.commands.arguments import config_arguments, machine_arguments, on_machines


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "plan",
        help="show what each stage needs of a GPU under each ZeRO stage, what fits, and the fastest setting that does",
        epilog="example: rlef plan configs/quickstart.yaml --gpus 1 --gpu-memory 24\n"
        "example: rlef plan configs/wizardmath_7b.yaml --gpus 16 --gpu-memory 80 --nodes 2",
    )
    config_arguments(command)
    machine_arguments(command, needed=True)
    command.add_argument("--json", action="store_true", help="print JSON, in bytes and seconds")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import json

    from rlef import pipeline
    from rlef.planning import plan as planner

    config, machines = on_machines(options)
    plans = planner.plan(config, pipeline.resolve_all(config), machines)
    if options.json:
        print(json.dumps(planner.as_json(plans, machines), indent=2))
    else:
        from rlef.views.tables import plan_table

        plan_table(plans, machines)
    return 0
