"""The limits that a training iteration's metrics are held against, so that a policy that games its reward raises an alarm. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MOST_REPEATS = 8  # of a 3-gram in one answer; answers of the quickstart have 2 or fewer, or else 27 and more


@dataclass(frozen=True)
class Rule:
    """Between which two values a metric is at peace, by its value at the first iteration."""

    metric: str
    limits: Callable[[float], tuple[float, float]]
    meaning: str

    def alarming(self, first: float, now: float) -> bool:
        low, high = self.limits(first)
        return not low <= now <= high


def _at_most(most: Callable[[float], float]) -> Callable[[float], tuple[float, float]]:
    return lambda first: (-math.inf, most(first))


def _steps(first: float) -> tuple[float, float]:
    """Half and twice the first; and 2 to 32, where the first was."""
    return max(0.5 * first, 2 if first >= 2 else -math.inf), min(2 * first, 32 if first <= 32 else math.inf)


RULES = {
    "length": Rule("rollout/length", lambda first: (0.5 * first, 2 * first), "answers are twice or half as long as at the start"),
    "step_count": Rule(
        "rollout/steps",
        _steps,
        "answers have twice or half as many steps as at the start, more than 32 or fewer than 2: is it steps that are paid?",
    ),
    "repeated_steps": Rule("rollout/repeated_steps", _at_most(lambda first: first + 0.5), "steps are written twice"),
    "looping": Rule(
        "rollout/looping",
        _at_most(lambda first: first + 0.1),
        f"a tenth more of the answers than at the start say the same three tokens over {MOST_REPEATS} times",
    ),
    "steps_after_answer": Rule("rollout/steps_after_answer", _at_most(lambda first: first + 0.5), "steps follow the final answer"),
    "unfinished": Rule("rollout/finished", lambda first: (0.5 * first, math.inf), "half as many answers end before max_tokens"),
    "masked": Rule("reward/masked", _at_most(lambda _: 0.1), "answers could not be judged; they teach nothing and count in no mean"),
    "no_answer": Rule("rollout/no_answer", _at_most(lambda first: first + 0.25), "answers have no final answer"),
    "reward_gap": Rule(
        "monitor/reward_gap",
        _at_most(lambda first: first + 0.15),
        "r_A has risen by 0.15 more than the share of right answers: the policy learns the reward model's mistakes",
    ),
    "kl": Rule("ppo/kl_per_token", lambda _: (-0.02, 0.5), "far from the reference, or under it, which no sampling gives"),
    "collapse": Rule(
        "ppo/entropy", lambda first: (0.2 * first, math.inf), "the policy is five times surer of its tokens than at the start"
    ),
    "sampler": Rule("rollout/logprob_gap", _at_most(lambda _: 0.1), "the sampler is not the policy that is trained; see correction"),
    "not_finite": Rule("optim/skipped_steps", _at_most(lambda _: 0), "gradients were not finite and steps were skipped"),
}
