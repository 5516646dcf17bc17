"""SIGTERM, by which a batch system takes a machine back: what can save goes on to its next step and saves there, all else stops at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL: the same command, started again, goes on
AGAIN_S = 0.05


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception: nothing on the way may take it for a failure and go on."""

    signum = signal.SIGTERM  # by whose handler it is raised


class _Stop:
    """This process's: whether it was told to stop, and whether it now works on what it can save."""

    asked = False
    deferred = False
    told: Any = None  # the hook that there was for errors that nobody can catch


def listen() -> Any:
    """Raise Stopped at SIGTERM, or once what is deferred has come to its step. Returns the handler that there was."""
    _Stop.asked = _Stop.deferred = False
    if sys.unraisablehook is not _swallowed:
        _Stop.told, sys.unraisablehook = sys.unraisablehook, _swallowed
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


def _swallowed(error: Any) -> None:
    """A handler runs wherever the interpreter is: in a finalizer or while a process is forked, where Python drops what is raised."""
    if not isinstance(error.exc_value, Stopped):
        return _Stop.told(error)
    signum = error.exc_value.signum
    if signum == signal.SIGTERM:
        signal.signal(signum, _arrived)
    threading.Timer(AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, signum)).start()
