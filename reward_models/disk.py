"""A disk that is full, or may not be written to: one message that names the place, whichever library met it."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from reward_models.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What is no OSError any more: safetensors' errors, and what torch says of a file that it could not write to its end.
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|PytorchStreamWriter failed writing file|unexpected pos \d+ vs"
)
_CLOSED = re.compile(r"Read-only file system|Permission denied")


@contextlib.contextmanager
def told(folder: str | Path, *, but: type[Exception] = UserError) -> Iterator[None]:
    """Raises UserError in place of what a full or closed disk raises in here. `folder`: named where the error names no file; `but`: what
    says it in words of its own."""
    try:
        yield
    except (UserError, but):
        raise
    except Exception as error:
        one: BaseException | None = error
        while one is not None:
            place = getattr(one, "filename", None) or folder
            if (isinstance(one, OSError) and one.errno in FULL) or _FULL.search(str(one)):
                raise UserError(
                    f"{place}: no space left to write there ({one})",
                    fix="free space on that disk, or raise the limit; the same command goes on from the last whole checkpoint",
                ) from error
            if (isinstance(one, OSError) and one.errno in CLOSED) or _CLOSED.search(str(one)):
                raise UserError(
                    f"{place}: may not be read or written ({one})", fix="give rights to that place, or take another folder"
                ) from error
            one = one.__cause__ or one.__context__
        raise
