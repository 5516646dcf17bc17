"""A process that runs a stage's function, alone or under torchrun: `python -m rlef.processes.worker job.json` (rlef.children starts it)."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from reward_models import disk, stopping
from reward_models.errors import UserError as RewardModelsError
from reward_models.quiet import quiet
from rlef.children import end_with, end_with_parent
from rlef.engines import dist
from rlef.errors import UserError
from rlef.load_config import parse_config
from rlef.processes.launch import call
from rlef.run_dir import ERROR, FAILURE, RunDir, write_json


def main(file: str) -> int:
    """0 done; 1 an error, 2 a user's mistake, both left in the stage's folder; 75 stopped. It ends the process, not returning."""
    quiet()
    end_with_parent(signal.SIGKILL)  # ranks wait for one another without a limit
    if launcher := os.environ.get("RLEF_RANKS"):
        end_with(int(launcher))
    job = json.loads(Path(file).read_text())
    config = parse_config(job["config"], file)
    folder = Path(job["folder"])
    first = os.environ.get("RANK", "0") == "0"
    run = RunDir(str(config.run.dir))
    stopping.listen()
    try:
        with disk.told(folder, but=UserError):
            result = call(config, run, job["stage"], folder, job["inputs"], job["function"], main=first and job["tracked"])
            if first:
                write_json(folder / "result.json", result)
        dist.close()
    except (UserError, RewardModelsError) as error:
        try:
            (folder / ERROR).write_text(str(error))  # where several ranks make a mistake, they all make this one
        except OSError:  # a full disk has no room for it
            print(f"error: {error}", file=sys.stderr, flush=True)
        _leave(2)
    except stopping.Stopped:
        _leave(stopping.EXIT_CODE)
    except Exception as error:
        _tell(error, folder)
        _leave(1)
    _leave(0)


def _tell(error: Exception, folder: Path) -> None:
    """The first rank to fail shows its traceback; others, which fail for its sake, a line each."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once others know of it, the launcher ends this one, too
    rank = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
    node = int(os.environ.get("GROUP_RANK", os.environ.get("CROSS_RANK", "0")))  # by torchrun, by DeepSpeed's launcher
    told = "".join(traceback.format_exception(error))
    try:
        # Only then do others lose their connection to this one.
        with (folder / FAILURE).open("x", encoding="utf-8") as handle:
            json.dump({"node": node, "rank": rank, "traceback": told}, handle)
        print(f"{rank}:\n{told}", file=sys.stderr, end="", flush=True)
    except FileExistsError:
        print(f"{rank}, after the first: {told.splitlines()[-1]}", file=sys.stderr, flush=True)


def _leave(code: int) -> NoReturn:
    """Threads of gloo and DeepSpeed that outlive the group abort the interpreter on its way out (SIGABRT); the work is done and on disk."""
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
