"""SIGTERM, by which a batch system takes a machine back: what can save goes on to its next step and saves there, all else stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL: the same command, started again, goes on


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception: nothing on the way may take it for a failure and go on."""


class _Stop:
    """This process's: whether it was told to stop, and whether it now works on what it can save."""

    asked = False
    deferred = False


def listen() -> Any:
    """Raise Stopped at SIGTERM, or once what is deferred has come to its step. Returns the handler that there was."""
    _Stop.asked = _Stop.deferred = False
    return signal.signal(signal.SIGTERM, _arrived)


def asked() -> bool:
    """Whether SIGTERM has arrived; what is deferred looks here after each step, and raises Stopped when it has saved."""
    return _Stop.asked


@contextlib.contextmanager
def deferred(defer: bool = True) -> Iterator[None]:
    """SIGTERM does not break in here. What is asked meanwhile, and was not followed, raises Stopped at the end. `defer` False: within
    such work, a wait that nothing is lost by breaking off."""
    before, _Stop.deferred = _Stop.deferred, defer
    try:
        if not defer:
            _check()
        yield
    finally:
        _Stop.deferred = before
    if not before:
        _check()


def _check() -> None:
    if _Stop.asked:
        raise Stopped


def _arrived(signum: int, frame: Any) -> None:
    _Stop.asked = True
    if not _Stop.deferred:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise Stopped
