"""A process alone, as DeepSpeed wants to find it: without torchrun's variables it asks MPI for the other ranks."""

from __future__ import annotations

import os
import socket


def free_port() -> int:
    """One that no socket of this machine has, on any of its addresses."""
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def announce_one_rank() -> None:
    """Set what torchrun would set for a single process; under torchrun nothing changes."""
    if "WORLD_SIZE" in os.environ:
        return
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
