"""A command of `rlef` on a terminal of its own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys


def on_terminal(*words: str, kind: str) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the descriptor that its screen is read from and its keys are written to. `kind`: of the terminal, as TERM says."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlef", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": kind},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a test run in the background ignores it
    )
    os.close(slave)
    return process, master
