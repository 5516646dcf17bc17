"""A vLLM server that a stage starts for itself and that ends with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from reward_models.ranks import free_port
from rlef.children import end_with_parent
from rlef.errors import UserError

STARTS_S = 900.0  # the first start of a model compiles it
SHOWN = 15  # last lines of its log


class OwnServer:
    """`command` (vllm serve MODEL ...) on a free port of this machine, in a process group of its own. `url` ends with /v1. `gpus`: what
    it sees of them, by number.

    Raises UserError, with the end of its log, where it does not come up within STARTS_S.
    """

    def __init__(self, command: Sequence[str], log: Path, gpus: str | None = None) -> None:
        port = free_port()
        whole = [*command, "--host", "127.0.0.1", "--port", str(port)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"VLLM_SERVER_DEV_MODE": "1"}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("w") as out:
                self._process = subprocess.Popen(
                    whole, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True, preexec_fn=end_with_parent
                )
        except OSError as error:
            raise UserError(f"rollout.vllm: {command[0]} cannot be started ({error})", fix="give the path of an installed vllm") from None
        atexit.register(self.close)
        self.url = f"http://127.0.0.1:{port}/v1"
        until = time.monotonic() + STARTS_S
        while not _healthy(port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                said = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:])
                raise UserError(f"the vLLM server did not come up:\n{said}", fix=f"read {log}; it was started with: {shlex.join(whole)}")
            time.sleep(0.5)

    def close(self) -> None:
        """End the whole process group: asked first, made to after 20 s."""
        atexit.unregister(self.close)
        for sent, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)


def _healthy(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
        return answer.status == 200
    return False
