"""`rlef run|check|plan|report|doctor|convert|STAGE`: parses, prints one message for a user's mistake, imports nothing heavy early."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from reward_models import disk, stopping
from reward_models.errors import UserError as RewardModelsError
from reward_models.terminal import inert
from rlef import __version__
from rlef.errors import UserError

STAGES = ("problems", "method", "evolve", "respond", "sft", "label", "irm", "prm", "orm", "ppo", "dpo", "grpo", "rft", "evaluate", "report")
FORMATS = (
    "steps", "math_shepherd", "prm800k", "processbench", "trl_stepwise", "problems", "solved", "alpaca", "sharegpt", "messages",
    "preference", "ultrafeedback_pairs", "ultrafeedback",
)  # fmt: skip
READ_ALONE = ("prm800k", "ultrafeedback")


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="rlef",
        description="Reinforcement learning from evolved feedback.",
        epilog="example: rlef run configs/quickstart.yaml ppo.iterations=20; a stage alone: rlef sft configs/quickstart.yaml",
    )
    main.add_argument("--version", action="version", version=f"rlef {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="{run,check,plan,report,doctor,convert,STAGE}")
    run = commands.add_parser(
        "run", help="run all stages that are not done", epilog="example: rlef run configs/quickstart.yaml run.seed=1 run.dir=runs/seed_1"
    )
    _config_arguments(run)
    run.add_argument("--from", dest="start", metavar="STAGE", help="redo this stage and all after it")
    run.add_argument("--only", metavar="STAGE", help="run this stage alone")
    run.add_argument("--yes", action="store_true", help="redo even what was paid for or took over 10 minutes")
    check = commands.add_parser(
        "check",
        help="validate a config, show stages, cache and memory; loads no model",
        epilog="with --gpu-memory it refuses what does not fit: rlef check configs/wizardmath_7b.yaml --gpus 8 --gpu-memory 80",
    )
    _config_arguments(check)
    _machine_arguments(check, needed=False)
    plan = commands.add_parser(
        "plan",
        help="show what each stage needs of a GPU under each ZeRO stage, what fits, and the fastest setting that does",
        epilog="example: rlef plan configs/wizardmath_7b.yaml --gpus 16 --gpu-memory 80 --nodes 2",
    )
    _config_arguments(plan)
    _machine_arguments(plan, needed=True)
    plan.add_argument("--json", action="store_true", help="print JSON, in bytes and seconds")
    commands.add_parser("doctor", help="show versions, cores, memory, GPUs")
    convert = commands.add_parser(
        "convert",
        help="turn label and data files of other projects into ours, and back",
        epilog="example: rlef convert prm800k.jsonl steps.jsonl --to steps; python -m reward_models train prm --labels steps.jsonl ...",
    )
    convert.add_argument("source", metavar="SOURCE", help="JSONL file, or folder or hub id of a data set")
    convert.add_argument("target", metavar="TARGET", help="JSONL file; rows that cannot go stand beside it in *.bad.jsonl")
    convert.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)} (read alone: {', '.join(READ_ALONE)})")
    convert.add_argument("--from", dest="of", metavar="FORMAT", help="the source's format; without it the first rows tell")
    convert.add_argument("--split", default="train", help="of a data set (default: train)")
    convert.add_argument("--subset", help="of a data set")
    convert.add_argument("--limit", type=_above_zero, metavar="N", help="read the first N rows alone")
    convert.add_argument("--force", action="store_true", help="replace TARGET")
    for stage in STAGES:
        one = commands.add_parser(
            stage, help=f"run the stage {stage} alone" if stage != "report" else "write report.html of a run directory"
        )
        _config_arguments(one)
        one.add_argument("--yes", action="store_true", help="redo even what was paid for or took over 10 minutes")
    return main


def _config_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. ppo.iterations=20")


def _machine_arguments(command: argparse.ArgumentParser, *, needed: bool) -> None:
    command.add_argument("--gpus", type=_above_zero, metavar="N", help="of all machines together (default: as the config launches)")
    command.add_argument("--gpu-memory", type=_above_zero, required=needed, metavar="GB", help="of one GPU, in 10^9 bytes")
    command.add_argument(
        "--nodes", type=_above_zero, metavar="N", help="machines; travelling between them is slower (default: as the config launches)"
    )
    command.add_argument("--prompt-tokens", type=_above_zero, default=256, metavar="N", help="of the longest prompt (default: 256)")


def _above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number above 0")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """0 done; 2 a user's mistake; 75 stopped by SIGTERM (run again to go on); 130 by Ctrl-C."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from rlef.launch import quiet

    quiet()
    before = stopping.listen()
    try:
        return _dispatch(options)
    except (UserError, RewardModelsError) as error:
        print(inert(f"error: {error}"), file=sys.stderr)
        return 2
    except stopping.Stopped as stopped:
        print(
            f"{str(stopped) or 'stopped by SIGTERM'}; the same command goes on with the first unfinished stage", file=sys.stderr, flush=True
        )
        return stopping.EXIT_CODE
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with the first unfinished stage", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options and overrides may stand in any order; a stage's own name is a command as its kind is (`rlef sft_2 CONFIG`)."""
    main = parser()
    if (
        len(arguments) > 1
        and not arguments[0].startswith("-")
        and arguments[0] not in ("run", "check", "plan", "doctor", "convert", *STAGES)
    ):
        arguments = ["run", *arguments[1:], "--only", arguments[0]]
    options, rest = main.parse_known_args(arguments)
    # argparse closes a list of arguments at the first option after it.
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown or (rest and options.command in ("doctor", "convert")):
        main.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.overrides += rest
    return options


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "doctor":
        return doctor()
    if options.command == "convert":
        return convert(options)
    if options.command == "report" and not Path(options.config).exists():
        raise UserError(f"{options.config}: no such run directory", fix="give a run directory, e.g. runs/quickstart")
    if options.command == "report" and Path(options.config).is_dir():
        from rlef.stages.report import write_report

        with disk.told(options.config, but=UserError):
            print(write_report(Path(options.config)))
        return 0
    from rlef.load_config import load_config

    given: list[str] = []
    if options.command in ("check", "plan") and options.gpus is not None:  # wherever they are
        given = [f"launch.processes={options.gpus}", "launch.nodes=1", "launch.hostfile=null"]
    config = load_config(options.config, [*options.overrides, *given])
    if options.command in ("check", "plan"):
        from rlef.needs import Machines

        nodes = options.nodes or len(config.launch.slots)
        machines = Machines(config.launch.world, 1e9 * (options.gpu_memory or 0), nodes, options.prompt_tokens)
        return check(config, machines) if options.command == "check" else plan(config, machines, as_json=options.json)
    if len(config.launch.slots) == 1:
        return work(config, options)
    from rlef.hosts import own_rank
    from rlef.nodes import Follower, Lead

    node = own_rank(config.launch, os.environ)
    if node > 0:
        return Follower(config.launch, node).run()
    with Lead(config.launch) as lead:
        return work(config, options, lead)


def work(config: Any, options: argparse.Namespace, lead: Any = None) -> int:
    """Run the stages that are asked for, and show what they made."""
    from rlef import pipeline
    from rlef.config import WITHOUT_MODEL

    if options.command == "run":
        run = pipeline.run(config, start=options.start, only=options.only, yes=options.yes, lead=lead)
    else:
        run = pipeline.run(config, only=options.command, yes=options.yes, lead=lead)
    alone = options.only if options.command == "run" else options.command
    data_alone = all(stage.kind in WITHOUT_MODEL for stage in config.stages.values())
    for name in [alone] if alone is not None else config.stages if data_alone else ():
        _show(config, run, name)
    print(f"\nrun directory: {run.root}" + (f"\nreport: {run.root / 'report.html'}" if (run.root / "report.html").is_file() else ""))
    return 0


def _show(config: Any, run: Any, name: str) -> None:
    """The table of a stage that made data."""
    from rlef import pipeline, tables

    manifest, kind = run.manifest(name), config.stages[name].kind
    if kind == "evolve":
        sources = pipeline.resolve_inputs(config, name)
        parents = [run.stage(one) if one in config.stages else Path(one) for key, one in sources.items() if key in ("problems", "pool")]
        print(tables.evolve_table(manifest.result, run.stage(name), parents))
    elif kind == "label":
        print(tables.label_table(manifest.result, run.stage(name)))


def check(config: Any, machines: Any) -> int:
    """Everything that can be known without loading a model; with the memory of a GPU also whether it is enough."""
    from rlef import pipeline
    from rlef.plan import memory_lines, refuse
    from rlef.run_dir import RunDir

    run = RunDir(str(config.run.dir))
    pipeline.check_launch(config, config.stages)
    inputs = pipeline.resolve_all(config)
    pipeline.check_data(config)
    reasons = pipeline.plan(config, run, inputs)
    memory = memory_lines(config, inputs, machines)
    if machines.memory:
        refuse(config, inputs, machines)
    print(f"config ok: {len(config.stages)} stages, run directory {run.root}")
    for name, stage in config.stages.items():
        manifest = run.manifest(name)
        state = "to run" if not run.stage(name).is_dir() else "interrupted, to go on"
        if manifest is not None:
            state = f"to redo ({reasons[name]})" if name in reasons else f"done ({manifest.seconds:.0f} s)"
        served = {key: " ".join(urls) for key, urls in pipeline.served_models(stage).items()}
        served |= {key: ":".join(place) for key, place in pipeline.reward_functions(stage).items()}
        shown = ", ".join(key if key.startswith("policy:") else f"{key} <- {source}" for key, source in (inputs[name] | served).items())
        print(f"  {name:12} {state:24} {shown if stage.kind != 'report' else 'the whole run'}")
    for line in memory:
        print(line)
    return 0


def plan(config: Any, machines: Any, *, as_json: bool) -> int:
    """Nothing is run, loaded or written."""
    import json

    from rlef import pipeline
    from rlef import plan as planner
    from rlef.tables import plan_table

    plans = planner.plan(config, pipeline.resolve_all(config), machines)
    if as_json:
        print(json.dumps(planner.as_json(plans, machines), indent=2))
    else:
        plan_table(plans, machines)
    return 0


def convert(options: argparse.Namespace) -> int:
    """Says what was read as what, and how many rows could not go."""
    from rlef.convert import convert as stream
    from rlef.convert import side_file

    how = {name: getattr(options, name) for name in ("to", "of", "subset", "split", "limit", "force")}
    try:
        done = stream(options.source, options.target, **how)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}", fix="check SOURCE and TARGET") from None
    read_as = f"{done.source.name}{', as its first rows look' if done.recognised else ''}"
    print(f"{options.source}: {done.rows:,} rows ({read_as})\n{options.target}: {done.written:,} rows ({options.to})")
    if done.first is not None:
        first = f"{done.first.file}, line {done.first.line}: {done.first.error}"
        print(inert(f"{side_file(Path(options.target))}: {done.aside:,} rows set aside; the first is {first}"))
    return 0


def doctor() -> int:
    """What this machine is."""
    import importlib.metadata
    import platform
    import shutil

    import torch

    print(f"python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    for name in ("rlef", "torch", "transformers", "trl", "deepspeed", "datasets", "wandb", "vllm"):
        try:
            print(f"  {name:14}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:14}not installed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"memory {memory:.1f} GiB, disk free {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}")
    print(f"W&B: {'online (key in the environment)' if os.environ.get('WANDB_API_KEY') else 'offline'}")
    print(f"matmul: {gflops():.0f} GFLOP/s (fp32, {torch.get_num_threads()} threads)")
    return 0


def gflops(size: int = 1024, repeats: int = 20) -> float:
    """Median speed of an fp32 matrix product on the CPU, so that times can be held against a machine."""
    import torch

    a = torch.randn(size, size)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[repeats // 2] / 1e9
