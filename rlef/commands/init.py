"""`rlef init`: a commented config after a few questions or flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.nearest import meant, meant_path
from rlef.commands.arguments import above_zero
from rlef.errors import UserError

if TYPE_CHECKING:
    from rlef.starter import Draft

DOMAINS = ("embedded", "math", "code", "general")


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "init",
        help="write a commented config after a few questions, or from flags",
        epilog="example: rlef init my.yaml\n"
        "example: rlef init my.yaml --domain embedded --yes\n"
        "example: rlef init my.yaml --domain math --data train.jsonl --test test.jsonl --model Qwen/Qwen2.5-1.5B-Instruct "
        "--gpus 4 --gpu-memory 80 --teacher https://api.openai.com/v1 --teacher-model gpt-4o-mini",
    )
    command.add_argument("file", nargs="?", default="rlef.yaml", metavar="FILE", help="YAML file to write; one that exists is left alone")
    command.add_argument(
        "--domain", choices=DOMAINS, help="embedded: made by rlef itself; math: with final answers; code, general: without"
    )
    command.add_argument(
        "--data", metavar="FILE", help="JSONL of problems with solutions, or a data set's hub id (ID:SUBSET where it has several)"
    )
    command.add_argument("--test", metavar="FILE", help="math: JSONL of held-out problems with answers")
    command.add_argument("--model", metavar="MODEL", help="hub id or folder of the policy (embedded: without it a small random one)")
    command.add_argument("--gpus", type=_count, metavar="N", help="0: a CPU")
    command.add_argument(
        "--gpu-memory", type=above_zero, metavar="GB", help="of one GPU, in 10^9 bytes: rows and ZeRO stage are made to fit"
    )
    command.add_argument("--teacher", metavar="WHO", help="symbolic (embedded), hf (a model in this process), or an endpoint's address")
    command.add_argument(
        "--teacher-model", metavar="MODEL", help="of hf: hub id or folder (without it the policy); of an endpoint: its name"
    )
    command.add_argument("--yes", action="store_true", help="ask nothing; what is not said takes its default")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rlef import starter

    file = Path(options.file)
    if file.exists():
        raise UserError(f"{file}: exists, and is left as it is", fix="give another name")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file}: its folder does not exist", fix="make it, or write elsewhere")
    if not options.yes and sys.stdin.isatty():
        try:
            ask(options)
        except (EOFError, KeyboardInterrupt):
            raise UserError("stopped; nothing was written", fix="`rlef init --yes` asks nothing") from None
    if options.gpu_memory is not None and options.gpus == 0:
        raise UserError(f"--gpu-memory {options.gpu_memory}: of no GPU", fix="leave it out, or give --gpus")
    gpus = options.gpus if options.gpus is not None else int(options.gpu_memory is not None)  # whose memory is said
    wishes = starter.Wishes(
        domain=options.domain or "embedded",
        model=options.model,
        data=options.data,
        test=options.test,
        gpus=gpus,
        teacher=options.teacher,
        teacher_model=options.teacher_model,
    )
    config, note = starter.draft(wishes), ""
    if options.gpu_memory is not None:
        config, note = fitted(config, str(file), options.gpu_memory)
    with file.open("x", encoding="utf-8") as handle:
        handle.write(starter.written(config, str(file), wishes, note=note))
    print(f"{file} is written." + (f" {note}" if note else ""))
    print(f"  rlef check {file}      is it right, and what would be run?\n  rlef run {file}        all stages; again to go on after a stop")
    if wishes.served:
        print(f"  export {config['teacher']['api_key_env']}=...      before, where the endpoint wants a key")
    return 0


def fitted(config: Draft, file: str, gigabytes: int) -> tuple[Draft, str]:
    """With the rows, checkpointing and ZeRO stage that fit a GPU, as far as that can be known; and what is to be said of it."""
    from rlef import pipeline, starter
    from rlef.load_config import parse_config
    from rlef.planning import plan
    from rlef.planning.needs import Machines
    from rlef.planning.shapes import UnknownShape

    kinds = {name: {"kind": name} | settings for name, settings in config["stages"].items()}
    whole = parse_config(config | {"run": {"dir": "runs/planned"}, "stages": kinds}, file)
    gpus = whole.launch.world
    try:
        words = plan.together(plan.plan(whole, pipeline.resolve_all(whole), Machines(gpus, 1e9 * gigabytes)))
    except UnknownShape:
        return config, f"The model is not here yet: once it is, `rlef plan {file} --gpus {gpus} --gpu-memory {gigabytes}` says what fits."
    if words is None:
        return config, f"Not all fits {gigabytes} GB: `rlef plan {file} --gpus {gpus} --gpu-memory {gigabytes}` says what would."
    changed, missing = starter.with_changes(config, words)
    if missing is not None:
        return changed, f"It fits {gigabytes} GB with launch.deepspeed={missing}, a file of rlef's repository that is not in this folder."
    return changed, f"It fits {gigabytes} GB a GPU, as `rlef plan` reckons."


# ---------------------------------------------------------------------------------------------- questions


def ask(options: argparse.Namespace) -> None:
    """For what was not said, as far as it matters with what was; an empty answer takes the default."""
    from rlef.starter import DOMAINS, MODEL

    if options.domain is None:
        for name, told in DOMAINS.items():
            print(f"  {name:9} {told}")
        options.domain = _answer("domain", "embedded", _one_of(DOMAINS))
    embedded = options.domain == "embedded"
    if options.data is None and not embedded:
        options.data = _answer("problems to start from (JSONL, or a data set's hub id)", None, str)
    if options.test is None and options.domain == "math" and Path(str(options.data)).is_file():
        options.test = _answer("held-out problems with answers (JSONL)", "none", _file)
    if options.model is None:
        options.model = _answer("model (hub id or folder)", "none: small and random" if embedded else MODEL, str)
    if options.gpus is None:
        options.gpus = _answer("GPUs", str(len(glob("/dev/nvidia[0-9]*"))), _count)
    if options.gpu_memory is None and options.gpus:
        options.gpu_memory = _answer("GB of a GPU", "none: not known", above_zero)
    if options.teacher is None:
        known = "symbolic, hf" if embedded else "hf: the policy itself"
        options.teacher = _answer(f"teacher ({known}, or an endpoint's address)", "symbolic" if embedded else "hf", str)
    if options.teacher_model is None and options.teacher.startswith("http"):
        options.teacher_model = _answer("the model that answers there", None, str)


def _answer(question: str, default: str | None, read: Callable[[str], Any]) -> Any:
    """Asked again until it can be read. A default that begins with "none" is None; without one an answer is needed."""
    while True:
        said = input(f"{question}{f' [{default}]' if default is not None else ''}: ").strip()
        if not said and default is not None and default.startswith("none"):
            return None
        if not said and default is None:
            print("  an answer is needed")
            continue
        try:
            return read(said or str(default))
        except argparse.ArgumentTypeError as error:
            print(f"  {error}")


def _one_of(known: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text}: one of {', '.join(known)}{meant(text, known)}")
        return text

    return read


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file{meant_path(text)}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: give a whole number")
    return int(text)
