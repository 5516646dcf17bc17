"""Which sampled answers teach by comparison (DPO) or by imitation (best-of-n distillation): pure functions on scored samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlef.rl.reward import Score
from rlef.rl.sampling import Sample


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; with `step` the same up to that step, which alone is compared (Step-DPO)."""

    chosen: Sample
    rejected: Sample
    step: int | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What both go on from: the prompt and the steps that they share."""
        return self.chosen.prompt.ids + self.chosen.completion.tokens[: step_start(self.chosen.score, self.step or 0)]

    @property
    def chosen_ids(self) -> tuple[int, ...]:
        return self._ids(self.chosen)

    @property
    def rejected_ids(self) -> tuple[int, ...]:
        return self._ids(self.rejected)

    def _ids(self, sample: Sample) -> tuple[int, ...]:
        """The whole answer, EOS included; of a step its tokens up to the one that closes it, which is EOS for the last step alone."""
        if self.step is None:
            return sample.completion.tokens
        return sample.completion.tokens[step_start(sample.score, self.step) : sample.score.slots[self.step] + 1]

    def reward(self, sample: Sample) -> float:
        """r_A of a whole answer, p_k of a step."""
        return sample.score.answer if self.step is None else sample.score.step_scores[self.step]


def step_start(score: Score, step: int) -> int:
    """The answer's token after the one that closes the step before."""
    return score.slots[step - 1] + 1 if step else 0


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
        pair = Pair(best, worst)
        reason = "tie" if best.score.text == worst.score.text else _unfit(pair, min_margin, max_length_ratio)
        if reason is None:
            pairs.append(pair)
        else:
            left_out[reason] += 1
    return pairs, dict(left_out)


def _unfit(pair: Pair, min_margin: float, max_length_ratio: float) -> str | None:
    """Why the pair teaches nothing: tie, margin, length; None where it does."""
    margin = pair.reward(pair.chosen) - pair.reward(pair.rejected)
    short, long = sorted((len(pair.chosen_ids), len(pair.rejected_ids)))
    if margin <= 0:
        return "tie"
    if margin < min_margin:
        return "margin"
    return "length" if long > max_length_ratio * short else None


def first_error(score: Score, threshold: float) -> int | None:
    """The first step that scores under `threshold`; None where none does, or where not each step was judged (an outcome model)."""
    if len(score.step_scores) != len(score.steps):
        return None
    return next((step for step, value in enumerate(score.step_scores) if value < threshold), None)


def _has_tokens(score: Score, step: int) -> bool:
    """False where one token closes the step before and this one."""
    return step_start(score, step) <= score.slots[step]


def wrong_steps(samples: Sequence[Sample], *, threshold: float) -> tuple[list[tuple[Sample, int]], int]:
    """Of each prompt the answer whose first wrong step scores least, with that step; and how many prompts have none."""
    found: list[tuple[Sample, int]] = []
    clean = 0
    for group in by_prompt(samples):
        first = [(sample, first_error(sample.score, threshold)) for sample in group]
        wrong = [(sample, step) for sample, step in first if step is not None and _has_tokens(sample.score, step)]
        if wrong:
            found.append(min(wrong, key=lambda one: one[0].score.step_scores[one[1]]))
        else:
            clean += 1
    return found, clean


def step_pairs(
    wrong: Sequence[tuple[Sample, int]],
    retries: Sequence[Sequence[Sample]],
    *,
    threshold: float,
    min_margin: float,
    max_length_ratio: float,
) -> tuple[list[Pair], dict[str, int]]:
    """A wrong step against another one after the same right steps (Step-DPO, arXiv 2406.18629), and how many have none, by reason.

    `retries` are whole answers that go on from the tokens before the wrong step. Chosen is the step that scores best among those of answers
    that are finished and right from end to end: a right step that leads to a wrong answer is no better way. Margin (of step scores) and
    length (of steps) as for `reward_pairs`.
    """
    pairs: list[Pair] = []
    left_out: Counter[str] = Counter()
    for (sample, step), others in zip(wrong, retries, strict=True):
        right = [
            other
            for other in others
            if other.score.zeroed is None
            and len(other.score.steps) == len(other.score.step_scores) > step
            and step_start(other.score, step) == step_start(sample.score, step)
            and _has_tokens(other.score, step)
            and other.score.answer >= threshold
        ]
        if not right:
            left_out["no_right_step"] += 1
            continue
        pair = Pair(max(right, key=lambda other: other.score.step_scores[step]), sample, step)
        reason = _unfit(pair, min_margin, max_length_ratio)
        if reason is None:
            pairs.append(pair)
        else:
            left_out[reason] += 1
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
