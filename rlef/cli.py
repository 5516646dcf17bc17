"""The command line `rlef`: parses, runs one command, prints one message for a user's mistake, imports nothing heavy early."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys

from reward_models import stopping
from reward_models.arguments import Parser
from reward_models.errors import UserError as RewardModelsError
from reward_models.nearest import meant
from reward_models.terminal import inert
from rlef import __version__
from rlef.commands import chat, check, compare, completion, convert, doctor, export, init, plan, report, run, stage, watch
from rlef.errors import UserError

COMMANDS = (
    init,
    run,
    check,
    plan,
    report,
    watch,
    compare,
    doctor,
    convert,
    export,
    chat,
    completion,
    stage,
)


def parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each command."""
    main = Parser(
        prog="rlef",
        description="Reinforcement learning from evolved feedback.",
        epilog="example: rlef run configs/quickstart.yaml ppo.iterations=20\nexample: rlef sft configs/quickstart.yaml",
    )
    main.add_argument("--version", action="version", version=f"rlef {__version__}")
    commands = main.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    commands.metavar = f"{{{','.join(name for name in commands.choices if name not in stage.STAGES)},STAGE}}"
    commands.choices["completion"].set_defaults(parser=main)
    return main, dict(commands.choices)


def main(arguments: list[str] | None = None) -> int:
    """0 done; 2 a user's mistake; 75 stopped by SIGTERM (run again to go on); 130 by Ctrl-C."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from reward_models.quiet import quiet

    quiet()
    before = stopping.listen()
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 128 + signal.SIGPIPE
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


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more (`rlef plan CONFIG | head`)."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    left = any(event & select.POLLERR for _, event in asked.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written when Python ends
    return left


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options and overrides may stand in any order; a stage's own name is a command as its kind is (`rlef sft_2 CONFIG`)."""
    main, commands = parser()
    name = next(iter(arguments), "--help")
    known = name.startswith("-") or name in commands
    no_command = "" if known else f"{name}: no such command{meant(name, commands)}"
    if no_command and len(arguments) == 1:
        main.error(no_command)
    options, rest = main.parse_known_args(["run", *arguments[1:], "--only", name] if no_command else arguments)
    # argparse closes a list of arguments at the first option after it.
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown and no_command:
        main.error(no_command)
    if unknown or (rest and not hasattr(options, "overrides")):
        commands[options.command].unrecognized(unknown or rest)
    if rest:
        options.overrides = [*options.overrides, *rest]
    if no_command:
        options.commands = tuple(commands)
    return options
