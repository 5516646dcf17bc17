"""Rewards of your own: copy this file, change it, and name its functions, e.g. `ppo: {prm: configs/rewards/exact_match.py:grade, irm:
configs/rewards/exact_match.py:rate, use_answers: true}`. What they may return: rlef/rl/functions.py."""

from __future__ import annotations

from rlef.answers import same_answer


def grade(question: str, steps: list[str], answer: str | None, gold: str | None) -> float | None:
    """1 for the known answer, 0 for another one; where none is known it cannot judge, and the sample teaches nothing."""
    if gold is None:
        return None
    return 1.0 if answer is not None and same_answer(answer, gold, question) else 0.0


def rate(question: str) -> float:
    """A prompt that asks nothing weighs a tenth of one that does."""
    return 1.0 if "?" in question else 0.1
