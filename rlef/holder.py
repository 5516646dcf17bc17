"""Which process works in a run directory, as its lock file says: for who looks at the directory from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock, or was the last to."""

    host: str
    pid: int
    began: float  # when it was started, as its machine says: another process may have its number later

    @classmethod
    def this(cls) -> Holder:
        import psutil  # 20 ms, which commands that run nothing need not spend

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def read(cls, file: Path) -> Holder | None:
        """None where nobody has been told of."""
        with contextlib.suppress(OSError, ValidationError):
            return TypeAdapter(cls).validate_json(file.read_bytes())
        return None

    def write(self, handle: TextIO) -> None:
        """Into the open lock file. A disk that is full does not matter: nothing but what is shown hangs on it."""
        with contextlib.suppress(OSError):
            handle.truncate(0)
            handle.write(json.dumps(asdict(self)))
            handle.flush()

    def lives(self) -> bool | None:
        """Whether it is there; None where it is another machine's."""
        import psutil

        if self.host != socket.gethostname():
            return None
        with contextlib.suppress(psutil.Error, ValueError, OverflowError):
            return abs(psutil.Process(self.pid).create_time() - self.began) < 1
        return False
