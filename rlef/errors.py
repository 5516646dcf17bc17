"""The one exception for a user's mistake: what is wrong, where, and how to mend it. And the one for being told to stop."""

from __future__ import annotations


class UserError(Exception):
    """Shown as one message without a traceback; the command exits with code 2."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception: nothing on the way may take it for a failure and go on."""
