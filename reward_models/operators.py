"""DeepSpeed builds its operators on first use; torch waits without limit for the lock file of a build that a kill broke off."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

IDLE = 180.0  # seconds without a new file, after which no build on another host, which shares this home, can be at work


def free_builds(idle: float = IDLE) -> None:
    """Remove such locks of DeepSpeed's operators, so that they are built anew. To be called before DeepSpeed starts, by any rank.

    A build holds its lock open. One that no process of this machine holds may be another host's, and is waited for until it
    has been idle for `idle` seconds.
    """
    told = False
    for lock in _locks():
        while lock.exists() and not _held(lock):
            left = idle - _age(lock.parent)
            if left <= 0:
                lock.unlink(missing_ok=True)
                break
            if not told:
                print(
                    f"{lock}: a build of DeepSpeed's that was broken off, or another host's; waiting for at most {left:.0f} s",
                    file=sys.stderr,
                )
                told = True
            time.sleep(min(left, 1.0))


def _locks() -> list[Path]:
    """In torch.utils.cpp_extension's folder: the user's own, or below the default one a folder for each Python and device."""
    from torch.utils.cpp_extension import get_default_build_root

    own = os.environ.get("TORCH_EXTENSIONS_DIR")
    found = sorted(Path(own).glob("*/lock") if own else Path(get_default_build_root()).glob("*/*/lock"))
    if not found:
        return []
    from deepspeed.ops.op_builder.all_ops import ALL_OPS  # takes seconds

    return [lock for lock in found if lock.parent.name in ALL_OPS]


def _held(lock: Path) -> bool:
    import psutil

    for process in psutil.process_iter(["open_files"]):
        if any(Path(held.path) == lock.absolute() for held in process.info["open_files"] or ()):
            return True
    return False


def _age(folder: Path) -> float:
    """Seconds since a file in it changed."""
    changed = []
    for file in folder.iterdir():
        try:
            changed.append(file.stat().st_mtime)
        except FileNotFoundError:  # the build that made it is at work
            return 0.0
    return time.time() - max(changed, default=0.0)
