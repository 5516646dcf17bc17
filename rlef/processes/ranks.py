"""torchrun or DeepSpeed's launcher that ends with one code and no traceback of its own: `python -m rlef.processes.ranks NAME WORDS`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import Any

import psutil

from reward_models import stopping

SIGNALLED = 256 - 65  # DeepSpeed's launcher ends with 256 less the signal that a rank was ended by


def main(words: list[str]) -> int:
    logging.disable(logging.ERROR)  # which signal it passed on to whom, and which rank failed: that one tells itself
    return {"torchrun": _torchrun, "deepspeed": _deepspeed}[words[0]](words[1:])


def _torchrun(words: list[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(words)
    except SignalException:
        return stopping.EXIT_CODE
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not tell itself
            print(f"rank {rank} was ended by {failure.signal_name()}", file=sys.stderr, flush=True)
            return 1
        return failure.exitcode
    return 0


def _deepspeed(words: list[str]) -> int:
    """It would give ranks 30 s to save, and pass no code on: SIGTERM goes past it."""
    told = False

    def stop(signum: int, frame: Any) -> None:
        nonlocal told
        told = True
        launchers = psutil.Process().children()
        ranks = [rank for launcher in launchers for rank in launcher.children()]
        for process in ranks or launchers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    signal.signal(signal.SIGTERM, stop)
    os.environ["RLEF_RANKS"] = str(os.getpid())  # the ranks' grandparent, with which they end
    from deepspeed.launcher import runner

    try:
        runner.main(words)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    if code > SIGNALLED and not told:
        print(f"a rank was ended by {signal.Signals(256 - code).name}", file=sys.stderr, flush=True)
    return stopping.EXIT_CODE if told else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
