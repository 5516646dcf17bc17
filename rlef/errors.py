"""The one exception for a user's mistake: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Shown as one message without a traceback; the command exits with code 2."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


def raise_all(wrong: Sequence[UserError]) -> None:
    """One error for all mistakes; nothing where there is none."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        lines = [f"  - {error.problem} ({error.fix})" for error in wrong]
        raise UserError(f"{len(wrong)} mistakes\n" + "\n".join(lines), fix="mend these keys")
