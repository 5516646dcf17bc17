"""An answer on the terminal: each step behind its score, in the colour of the score."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from reward_models.steps import split_steps, until_answer
from reward_models.terminal import inert

GOOD, DOUBTFUL = 0.7, 0.4  # scores from which a step is green, yellow


def colour(score: float) -> str:
    return "green" if score >= GOOD else "yellow" if score >= DOUBTFUL else "red"


def step_lines(text: str, scores: Sequence[float], *, delimiter: str, marker: str) -> list[Text]:
    """A line a step. `scores`: one a step up to the one with the answer `marker`, or an outcome model's one, which stands before that."""
    steps = split_steps(text, delimiter)
    scored = len(until_answer(steps, marker))
    places: list[float | None] = [*scores] if len(scores) == scored else [*[None] * (scored - 1), *scores[-1:]]
    places += [None] * (len(steps) - len(places))
    return [step_line(step.text, score) for step, score in zip(steps, places, strict=True)]


def step_line(step: str, score: float | None) -> Text:
    """Without a score it stands in the same column."""
    mark = Text("     ") if score is None else Text(f"{score:.2f} ", style=colour(score))
    return mark + Text(one_line(step))


def one_line(text: str) -> str:
    """A text of others that cannot act on the terminal, and stays on its line."""
    return inert(" ".join(text.split()))
