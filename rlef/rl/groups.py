"""Advantages of a group's answers from their own rewards, without a critic: GRPO, Dr. GRPO and RLOO, of whole answers or of steps.

An answer has one reward (r_I * r_A, outcome form) or one a step (process form); of one reward each, everything here is the outcome form.
Sources: GRPO and its process form, DeepSeekMath (arXiv 2402.03300, 4.1); no division by the deviation, Dr. GRPO (2503.20783); leave one
out, RLOO (2402.14740), which of n answers is n / (n - 1) times the group's mean taken off.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Literal

from rlef.rl.reward import Score

Group = Sequence[Sequence[float]]  # the rewards of each answer to one prompt; none of one that could not be judged
LEAST_DEVIATION = 1e-4  # added to a deviation, as in TRL


def rewards_of(score: Score, length: int, form: Literal["outcome", "process"]) -> tuple[list[float], list[int]]:
    """The rewards of an answer of `length` tokens, and the token at which each is final.

    The process form pays r_I * p_k where step k ends; the last step's stands on the last token, so that it counts for how the answer ends.
    All steps of an answer with r_A = 0 get 0: good steps must not pay for an answer that is cut off or gives none.
    """
    if score.masked:
        return [], []
    if form == "outcome" or not score.step_scores:
        return [score.total], [length - 1]
    paid = [0.0 if score.zeroed else score.instruction * value for value in score.step_scores]
    return paid, [*score.slots[:-1], length - 1]


def deviation(rewards: Sequence[float]) -> float:
    """Of a sample (n - 1); 0 of fewer than two."""
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0


def relative(group: Group, *, baseline: Literal["group", "rloo"], divide_by: float | None = None) -> list[list[float]]:
    """Each reward minus the mean of all the group's, or (rloo) of those of the other answers; over `divide_by`, None: not at all.

    Nothing of an answer without others to be held against.
    """
    every = list(chain.from_iterable(group))
    scale = 1.0 if divide_by is None else divide_by + LEAST_DEVIATION
    out = []
    for own in group:
        others = len(every) - len(own)
        if not own or not others:
            out.append([0.0] * len(own))
            continue
        mean = statistics.fmean(every) if baseline == "group" else (sum(every) - sum(own)) / others
        out.append([(reward - mean) / scale for reward in own])
    return out


def to_come(rewards: Sequence[float], slots: Sequence[int], length: int) -> list[float]:
    """A token's advantage, for `length` tokens: the sum of the rewards that become final with it or later."""
    placed = [0.0] * length
    for slot, reward in zip(slots, rewards, strict=True):
        placed[slot] += reward
    return list(accumulate(reversed(placed)))[::-1]
