"""SIGTERM while Python drops what is raised still ends the process, once; other errors there are told as before."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, signal, sys, time
from reward_models import stopping

class Closed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs here
            pass

class Broken:
    def __del__(self):
        raise ValueError("told")

stopping.listen()
try:
    Broken()
    Closed()
    print("goes on", flush=True)
    time.sleep(20)
except stopping.Stopped:
    print("stopped")
    sys.exit(stopping.EXIT_CODE)
"""


def test_a_stop_that_a_finalizer_swallows_comes_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout.split("\n")) == (75, ["goes on", "stopped", ""])
    assert "ValueError: told" in done.stderr and "Stopped" not in done.stderr
