"""Samples as tables for people: each step in the colour of its score, and where the reward model and the right answer disagree most."""

from __future__ import annotations

import html
from collections.abc import Sequence

from rlef.rl.monitor import is_exact
from rlef.rl.sampling import Sample
from rlef.trackers.base import Html
from rlef.tracking import Tracker

MOST = 64  # rows of a table
MOST_DISAGREEMENTS = 20
COLUMNS = ("question", "steps", "r_I", "r_A", "total", "zeroed", "right", "gold")


def log_samples(tracker: Tracker, samples: Sequence[Sample]) -> None:
    """An iteration's samples, and of those with a known answer the ones that the reward misjudges most."""
    if samples:
        tracker.table("rollouts", COLUMNS, [_row(sample) for sample in samples[:MOST]])
    worst = disagreements(samples)
    if worst:
        tracker.table("disagreements", ("error", *COLUMNS), [[error, *_row(sample)] for error, sample in worst])


def disagreements(samples: Sequence[Sample], most: int = MOST_DISAGREEMENTS) -> list[tuple[float, Sample]]:
    """(|r_A - 1 where the answer is right, else 0|, sample), the largest first: over 0.5 the reward is on the wrong side."""
    known = [sample for sample in samples if sample.prompt.gold is not None and not sample.score.masked]
    rated = [(abs(sample.score.answer - is_exact(sample)), sample) for sample in known]
    return sorted((one for one in rated if one[0] > 0.5), key=lambda one: -one[0])[:most]


def coloured(steps: Sequence[str], scores: Sequence[float]) -> Html:
    """A line a step, red at 0 to green at 1 with the score behind it; scores of an outcome model stand on the last step alone."""
    marked: list[float | None] = [*([None] * (len(steps) - len(scores))), *scores]
    lines, plain = [], []
    for step, score in zip(steps, marked, strict=False):
        text = html.escape(step)
        if score is None:
            lines.append(f"<div>{text}</div>")
            plain.append(step)
        else:
            hue = round(120 * min(1.0, max(0.0, score)))
            lines.append(f'<div style="background:hsl({hue},70%,85%);color:#111">{text} <small>{score:.2f}</small></div>')
            plain.append(f"{step} [{score:.2f}]")
    return Html(f'<div style="font:13px monospace;white-space:pre-wrap">{"".join(lines)}</div>', "\n".join(plain))


def _row(sample: Sample) -> list:
    score, prompt = sample.score, sample.prompt
    steps = coloured(score.steps or (score.text,), score.step_scores)
    rewards = [score.instruction, score.answer, score.total]
    return [prompt.problem.question, steps, *rewards, score.zeroed, is_exact(sample), prompt.gold]
