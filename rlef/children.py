"""Child processes that end with this one, and a stage's function run in one: what outlives a run would write into its folder."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reward_models import stopping
from rlef.config import Config
from rlef.run_dir import ERROR, FAILURE, write_json

SAVE_S = 600  # how long what was told to stop may take to save
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


class ChildFailed(Exception):
    """A stage's process ended without a result. `said`: the user's mistake that it found; None where it crashed under its own traceback."""

    def __init__(self, code: int, said: str | None) -> None:
        super().__init__(said or f"its process ended with code {code}")
        self.code, self.said = code, said


def run_stage_in(
    command: Sequence[str],
    config: Config,
    stage: str,
    folder: Path,
    inputs: Mapping[str, str],
    function: str,
    *,
    tracked: bool,
    environment: Mapping[str, str] | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """The result of a stage's `function`, which rlef.processes.worker runs under `command` (python, or python and torchrun).

    `alone` as for `wait`.

    What both tell each other lies in `folder` until it is done. Raises ChildFailed; Stopped where the process was told to stop.
    """
    job = write_job(config, stage, folder, inputs, function, tracked=tracked)
    code = wait([*command, "-m", "rlef.processes.worker", str(job)], environment=environment, alone=alone)
    return result_of(code, folder)


def write_job(config: Config, stage: str, folder: Path, inputs: Mapping[str, str], function: str, *, tracked: bool) -> Path:
    """The file that tells rlef.processes.worker what to do, the resolved config in it. What an earlier start left to say is gone."""
    for name in (ERROR, FAILURE):
        (folder / name).unlink(missing_ok=True)
    told = {"config": config.model_dump(mode="json"), "stage": stage, "folder": str(folder), "inputs": dict(inputs)}
    write_json(folder / "job.json", told | {"function": function, "tracked": tracked})
    return folder / "job.json"


def result_of(code: int, folder: Path) -> dict[str, Any]:
    """What the workers that ended with `code` left. Raises ChildFailed and Stopped."""
    job, answer, error = (folder / name for name in ("job.json", "result.json", ERROR))
    if code == stopping.EXIT_CODE:
        raise stopping.Stopped
    if code != 0 or not answer.is_file():
        raise ChildFailed(code, error.read_text(encoding="utf-8") if error.is_file() else None)
    result = json.loads(answer.read_text(encoding="utf-8"))
    job.unlink()
    answer.unlink()
    return result


def wait(command: Sequence[str], environment: Mapping[str, str] | None = None, *, alone: bool = False) -> int:
    """Run a command to its end and return its code. `alone`: it is no rank of the group that this process belongs to."""
    return Child(command, environment, alone=alone).wait()


class Child:
    """A command that ends with this process. Any thread may end it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, alone: bool = False) -> None:
        inherited = {key: value for key, value in os.environ.items() if not (alone and (key in TORCHRUN or key.startswith("TORCHELASTIC")))}
        # Told by a signal that it may answer by saving, an orphan would write beside the run's next start.
        end = partial(end_with_parent, signal.SIGKILL)
        # A batch system's or a terminal's signal for the whole group would reach it beside this process's own: the second ends it at once.
        self._process = subprocess.Popen(command, env=inherited | dict(environment or {}), preexec_fn=end, process_group=0)
        self._asked, self._lock = False, threading.Lock()

    def wait(self) -> int:
        """Its code. What breaks in has it stop first, and waits until it has saved."""
        try:
            return self._process.wait()
        except BaseException:
            self.stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=SAVE_S)
            self.kill()
            raise

    def stop(self) -> None:
        """Have it save and end; once, however many ask."""
        with self._lock:
            if not self._asked:
                self._asked = True
                self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Have the system send this process a signal when the one that started it is gone."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


def end_with(pid: int) -> None:
    """Have this process killed when that one is gone, though others stand between them."""
    if sys.platform != "linux":
        return
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def follow() -> None:
        select.select([gone], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
