"""Child processes that end with this one: what outlives a run would write into its folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def wait(command: Sequence[str], environment: Mapping[str, str] | None = None, *, alone: bool = False) -> int:
    """Run a command to its end and return its code. `alone`: it is no rank of the group that this process belongs to."""
    inherited = {key: value for key, value in os.environ.items() if not (alone and (key in TORCHRUN or key.startswith("TORCHELASTIC")))}
    process = subprocess.Popen(command, env=inherited | dict(environment or {}), preexec_fn=end_with_parent)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        process.kill()
        raise


def end_with_parent() -> None:
    """Have the system stop this process when the one that started it is gone."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
