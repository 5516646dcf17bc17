"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlef.config import Config
    from rlef.planning.needs import Machines


def config_arguments(command: argparse.ArgumentParser, *, what: str = "YAML file") -> None:
    command.add_argument("config", help=what)
    command.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value", help="e.g. ppo.iterations=20")


def redo_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="redo even what was paid for or took over 10 minutes")


def machine_arguments(command: argparse.ArgumentParser, *, needed: bool) -> None:
    command.add_argument("--gpus", type=above_zero, metavar="N", help="of all machines together (default: as the config launches)")
    command.add_argument("--gpu-memory", type=above_zero, required=needed, metavar="GB", help="of one GPU, in 10^9 bytes")
    command.add_argument(
        "--nodes", type=above_zero, metavar="N", help="machines; travelling between them is slower (default: as the config launches)"
    )
    command.add_argument("--prompt-tokens", type=above_zero, default=256, metavar="N", help="of the longest prompt")


def above_zero(text: str) -> int:
    """Raises ArgumentTypeError, which argparse tells with the argument's name."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number above 0")
    return int(text)


def within(low: float, high: float, what: str) -> Callable[[str], float]:
    """Reads a number from `low` to `high`; else ArgumentTypeError, as above."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(f"{text}: give {what} from {low:g} to {high:g}")

    return read


def on_machines(options: argparse.Namespace) -> tuple[Config, Machines]:
    """The config, launched on as many GPUs as `--gpus` says, and the machines with their memory."""
    from rlef.load_config import load_config
    from rlef.planning.needs import Machines

    given: list[str] = []
    if options.gpus is not None:  # wherever they are
        given = [f"launch.processes={options.gpus}", "launch.nodes=1", "launch.hostfile=null"]
    config = load_config(options.config, [*options.overrides, *given])
    nodes = options.nodes or len(config.launch.slots)
    return config, Machines(config.launch.world, 1e9 * (options.gpu_memory or 0), nodes, options.prompt_tokens)
