"""What an iteration sampled, in numbers over all ranks, and the alarms that tell when a policy games its reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlef.answers import same_answer
from rlef.engines import dist
from rlef.rl.advantages import k1, k3, masked
from rlef.rl.batch import RolloutBatch
from rlef.rl.guards import MOST_REPEATS, RULES
from rlef.rl.losses import explained_variance
from rlef.rl.sampling import Sample


@dataclass
class Sums:
    """Named sums over tokens, added up over ranks when read."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, **sums: torch.Tensor | float) -> None:
        for name, value in sums.items():
            self.values[name] = self.values.get(name, torch.zeros((), dtype=torch.float64)) + torch.as_tensor(value).detach().double().cpu()

    def reduced(self) -> dict[str, float]:
        names = sorted(self.values)
        total = dist.all_reduce_sum(torch.stack([self.values[name] for name in names])) if names else torch.zeros(0)
        return dict(zip(names, total.tolist(), strict=True))


def sample_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Rewards and shapes of the answers that could be judged, over all ranks; nan for means where none could."""
    judged = [sample for sample in samples if not sample.score.masked]
    sums = Sums()
    sums.add(
        sampled=len(samples),
        rows=len(judged),
        tokens=sum(len(sample.completion.tokens) for sample in judged),
        total=sum(sample.score.total for sample in judged),
        instruction=sum(sample.score.instruction for sample in judged),
        answer=sum(sample.score.answer for sample in judged),
        finished=sum(sample.completion.finished for sample in judged),
        no_answer=sum(sample.score.zeroed == "no_answer" for sample in judged),
        too_long=sum(sample.score.zeroed == "too_long" for sample in judged),
        steps=sum(len(sample.score.steps) for sample in judged),
        repeated=sum(sample.score.repeated_steps for sample in judged),
        looping=sum(loops(sample.completion.tokens) for sample in judged),
        after=sum(sample.score.steps_after_answer for sample in judged),
        known=sum(sample.prompt.gold is not None for sample in judged),
        exact=sum(is_exact(sample) for sample in judged),
        known_answer=sum(sample.score.answer for sample in judged if sample.prompt.gold is not None),
    )
    total = sums.reduced()
    rows, tokens = total["rows"] or math.nan, total["tokens"] or math.nan
    return {
        "reward/total": total["total"] / rows,
        "reward/instruction": total["instruction"] / rows,
        "reward/answer": total["answer"] / rows,
        "reward/masked": (total["sampled"] - total["rows"]) / max(1.0, total["sampled"]),
        "rollout/length": tokens / rows,
        "rollout/tokens": total["tokens"],
        "rollout/finished": total["finished"] / rows,
        "rollout/no_answer": total["no_answer"] / rows,
        "rollout/too_long": total["too_long"] / rows,
        "rollout/steps": total["steps"] / rows,
        "rollout/repeated_steps": total["repeated"] / rows,
        "rollout/looping": total["looping"] / rows,
        "rollout/steps_after_answer": total["after"] / rows,
        "monitor/exact_match": total["exact"] / total["known"] if total["known"] else math.nan,
        "monitor/reward_gap": (total["known_answer"] - total["exact"]) / total["known"] if total["known"] else math.nan,
    }


def rollout_metrics(batch: RolloutBatch, samples: Sequence[Sample], entropy: torch.Tensor) -> dict[str, float]:
    """What PPO sampled, over all ranks; nan for means where nothing was judged. entropy: (B, T)."""
    mask = batch.mask
    gap = masked(batch.old_logprobs - batch.rollout_logprobs, mask).abs()
    error = masked(batch.returns - batch.values, mask)
    returns = masked(batch.returns, mask)
    sums = Sums()
    sums.add(
        rows=sum(not sample.score.masked for sample in samples),
        tokens=mask.sum(),
        kl=masked(k1(batch.old_logprobs, batch.ref_logprobs), mask).sum(),
        k3=masked(k3(batch.old_logprobs, batch.ref_logprobs), mask).sum(),
        entropy=masked(entropy, mask).sum(),
        gap=gap.sum(),
        weight=masked(batch.weights, mask).sum(),
        corrected=masked((batch.weights != 1).to(mask.dtype), mask).sum(),
        value=masked(batch.values, mask).sum(),
        returns=returns.sum(),
        returns2=returns.square().sum(),
        error=error.sum(),
        error2=error.square().sum(),
    )
    total = sums.reduced()
    rows, tokens = total["rows"] or math.nan, total["tokens"] or math.nan
    moments = torch.tensor([total[name] for name in ("tokens", "returns", "returns2", "error", "error2")])
    return sample_metrics(samples) | {
        "rollout/logprob_gap": total["gap"] / tokens,
        "rollout/weight": total["weight"] / tokens,
        "rollout/corrected": total["corrected"] / tokens,
        "ppo/kl": total["kl"] / rows,
        "ppo/kl_per_token": total["kl"] / tokens,
        "ppo/k3_per_token": total["k3"] / tokens,
        "ppo/entropy": total["entropy"] / tokens,
        "value/mean": total["value"] / tokens,
        "value/explained_variance": explained_variance(moments),
    }


def is_exact(sample: Sample) -> bool:
    """Right by the gold answer: a curve for the eye, to be held against the reward. Nothing learns from it."""
    gold, answer = sample.prompt.gold, sample.score.extracted
    return gold is not None and answer is not None and same_answer(answer, gold, sample.prompt.problem.question)


def loops(tokens: Sequence[int]) -> bool:
    """Whether some three tokens in a row stand in the answer more than MOST_REPEATS times, overlapping ones counted."""
    return max(Counter(zip(tokens, tokens[1:], tokens[2:], strict=False)).values(), default=0) > MOST_REPEATS


class Alarms:
    """Watches an iteration's metrics against those of the first; each alarm is raised once, and `since` keeps the iteration."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.since: dict[str, int] = {}

    def raised(self, iteration: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """New alarms: name -> what to tell. Metrics that are not known (nan) raise none."""
        new = {}
        for name, rule in RULES.items():
            now = metrics.get(rule.metric, math.nan)
            first = self.first.setdefault(rule.metric, now) if math.isfinite(now) else math.nan
            if name not in self.since and math.isfinite(now) and rule.alarming(first, now):
                self.since[name] = iteration
                new[name] = f"iteration {iteration}: {rule.meaning} ({rule.metric} {first:.3g} -> {now:.3g})"
        return new

    def state(self) -> dict[str, dict]:
        return {"first": self.first, "since": self.since}

    def load(self, state: Mapping[str, dict]) -> None:
        self.first, self.since = dict(state["first"]), dict(state["since"])
