"""Which sampled answers teach by comparison (DPO) or by imitation (best-of-n distillation): pure functions on scored samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlef.rl.sampling import Sample


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: Sample
    rejected: Sample


def by_prompt(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples of one prompt together, in order of first appearance."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt.problem.id, []).append(sample)
    yield from groups.values()


def reward_pairs(samples: Sequence[Sample], *, min_margin: float, max_length_ratio: float) -> tuple[list[Pair], dict[str, int]]:
    """Best against worst of each prompt by r_A (r_I is the same for both), and how many prompts gave no pair, by reason.

    Both answers must have been judged, be finished, differ in text, differ by at least `min_margin`, and be alike in length: the longer at
    most `max_length_ratio` times the shorter. Equal scores make no pair: a coin toss is not a preference.
    """
    pairs: list[Pair] = []
    left_out: Counter[str] = Counter()
    for group in by_prompt(samples):
        judged = [sample for sample in group if not sample.score.masked]
        finished = [sample for sample in judged if sample.completion.finished]
        if len(finished) < 2:
            left_out["unfinished" if len(judged) > 1 else "masked"] += 1
            continue
        best = max(finished, key=lambda sample: sample.score.answer)
        worst = min(finished, key=lambda sample: sample.score.answer)
        short, long = sorted((len(best.completion.tokens), len(worst.completion.tokens)))
        margin = best.score.answer - worst.score.answer
        if best.score.text == worst.score.text or margin <= 0 or margin < min_margin:
            left_out["margin"] += 1
        elif long > max_length_ratio * short:
            left_out["length"] += 1
        else:
            pairs.append(Pair(best, worst))
    return pairs, dict(left_out)


def best_samples(samples: Sequence[Sample], *, min_reward: float) -> list[Sample]:
    """The best finished and judged answer of each prompt by r_A, where it reaches `min_reward`."""
    chosen = []
    for group in by_prompt(samples):
        finished = [sample for sample in group if sample.completion.finished and not sample.score.masked]
        best = max(finished, key=lambda sample: sample.score.answer, default=None)
        if best is not None and best.score.answer >= min_reward:
            chosen.append(best)
    return chosen
