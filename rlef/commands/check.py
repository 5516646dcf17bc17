"""`rlef check`: everything that can be known without loading a model; with the memory of a GPU also whether it is enough."""

from __future__ import annotations

import argparse

from rlef.commands.arguments import config_arguments, machine_arguments, on_machines


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "check",
        help="validate a config, show stages, cache and memory, with --gpu-memory whether it fits; loads no model",
        epilog="example: rlef check configs/quickstart.yaml ppo.iterations=20\n"
        "example: rlef check configs/wizardmath_7b.yaml --gpus 8 --gpu-memory 80",
    )
    config_arguments(command)
    machine_arguments(command, needed=False)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rlef import pipeline
    from rlef.planning.plan import memory_lines, refuse
    from rlef.run_dir import RunDir
    from rlef.views.live import at_work

    config, machines = on_machines(options)
    done = RunDir(str(config.run.dir))
    pipeline.check_launch(config, config.stages)
    inputs = pipeline.resolve_all(config)
    pipeline.check_data(config)
    reasons = pipeline.plan(config, done, inputs)
    memory = memory_lines(config, inputs, machines)
    if machines.memory:
        refuse(config, inputs, machines)
    print(f"config ok: {len(config.stages)} stages, run directory {done.root}")
    working = at_work(done, config.stages)
    for name, stage in config.stages.items():
        manifest = done.manifest(name)
        state = "to run" if not done.stage(name).is_dir() else "at work now" if name == working else "interrupted, to go on"
        if manifest is not None:
            state = f"to redo ({reasons[name]})" if name in reasons else f"done ({manifest.seconds:.0f} s)"
        served = {key: " ".join(urls) for key, urls in pipeline.served_models(stage).items()}
        served |= {key: ":".join(place) for key, place in pipeline.reward_functions(stage).items()}
        shown = ", ".join(key if key.startswith("policy:") else f"{key} <- {source}" for key, source in (inputs[name] | served).items())
        print(f"  {name:12} {state:24} {shown if stage.kind != 'report' else 'the whole run'}")
    for line in memory:
        print(line)
    return 0
