"""`rlef convert`: files of other projects into ours, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from reward_models.terminal import inert
from rlef.commands.arguments import above_zero
from rlef.errors import UserError

FORMATS = (
    "steps", "math_shepherd", "prm800k", "processbench", "trl_stepwise", "problems", "solved", "alpaca", "sharegpt", "messages",
    "preference", "ultrafeedback_pairs", "ultrafeedback",
)  # fmt: skip
READ_ALONE = ("prm800k", "ultrafeedback")


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "convert",
        help="turn label and data files of other projects into ours, and back",
        epilog="example: rlef convert prm800k.jsonl steps.jsonl --to steps\n"
        "example: python -m reward_models train prm --labels steps.jsonl --init Qwen/Qwen2.5-1.5B --out my_prm",
    )
    command.add_argument("source", metavar="SOURCE", help="JSONL file, or folder or hub id of a data set")
    command.add_argument("target", metavar="TARGET", help="JSONL file; rows that cannot go stand beside it in *.bad.jsonl")
    command.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)} (read alone: {', '.join(READ_ALONE)})")
    command.add_argument("--from", dest="of", metavar="FORMAT", help="the source's format; without it the first rows tell")
    command.add_argument("--split", default="train", help="of a data set")
    command.add_argument("--subset", help="of a data set")
    command.add_argument("--limit", type=above_zero, metavar="N", help="read the first N rows alone")
    command.add_argument("--force", action="store_true", help="replace TARGET")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Says what was read as what, and how many rows could not go."""
    from rlef.convert import convert, side_file

    how = {name: getattr(options, name) for name in ("to", "of", "subset", "split", "limit", "force")}
    try:
        done = convert(options.source, options.target, **how)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}", fix="check SOURCE and TARGET") from None
    read_as = f"{done.source.name}{', as its first rows look' if done.recognised else ''}"
    print(f"{options.source}: {done.rows:,} rows ({read_as})\n{options.target}: {done.written:,} rows ({options.to})")
    if done.first is not None:
        first = f"{done.first.file}, line {done.first.line}: {done.first.error}"
        print(inert(f"{side_file(Path(options.target))}: {done.aside:,} rows set aside; the first is {first}"))
    return 0
