"""The one exception for a user's mistake: what is wrong, where, and how to mend it."""

from __future__ import annotations


class UserError(Exception):
    """Shown as one message without a traceback; the command exits with code 2."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)
