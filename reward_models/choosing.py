"""Of several answers to a question: the one with the best score, and the winner of a vote weighted by the scores.

A row is {"question": text, "completions": [text, ..]}; it comes back with

    step_scores  of each completion; null where it is too long to be read
    scores       the least step score of each; null likewise
    best         place of the completion with the best score among those that have an answer; null where none has
    best_answer, weighted_vote, majority    answers; null likewise
    instruction  r_I of the question, where an instruction reward model is asked

An answer is what stands behind the marker, on its line. Equal numbers are one answer ("1,200" and "1200.0").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_models.errors import UserError
from reward_models.instruction import InstructionRewardModel
from reward_models.metrics import best_of, majority_vote, weighted_vote
from reward_models.process import ProcessRewardModel, aggregate
from reward_models.records import numbered_lines
from reward_models.steps import split_steps, until_answer

ROWS = 64  # scored together


class Asked(BaseModel):
    """A row of the input; other keys go along."""

    model_config = ConfigDict(extra="allow")
    question: str
    completions: list[str] = Field(min_length=1)


@dataclass(frozen=True)
class Choice:
    """What the scores say of one question's completions."""

    step_scores: list[list[float] | None]
    scores: list[float | None]
    best: int | None
    best_answer: str | None
    weighted_vote: str | None
    majority: str | None


def choose(
    prm: ProcessRewardModel,
    questions: Sequence[str],
    completions: Sequence[Sequence[str]],
    *,
    delimiter: str = "\n",
    marker: str = "####",
    batch_size: int = 64,
) -> list[Choice]:
    """One choice a question. Steps behind the answer's line are not scored; a completion without a score votes with weight 0."""
    asked = [question for question, texts in zip(questions, completions, strict=True) for _ in texts]
    steps = [[step.text for step in until_answer(split_steps(text, delimiter), marker)] for texts in completions for text in texts]
    judged = iter(prm.score(asked, steps, batch_size))
    choices = []
    for texts in completions:
        results = [next(judged) for _ in texts]
        scores = [None if one.truncated else aggregate(one.scores) for one in results]
        answers = [answer_of(text, marker) for text in texts]
        weights = [score or 0.0 for score in scores]
        able = [place for place, answer in enumerate(answers) if answer is not None and scores[place] is not None]
        choices.append(
            Choice(
                step_scores=[None if one.truncated else list(one.scores) for one in results],
                scores=scores,
                best=max(able, key=lambda place: (weights[place], -place)) if able else None,
                best_answer=best_of([answers[place] for place in able], [weights[place] for place in able]),
                weighted_vote=weighted_vote(answers, weights),
                majority=majority_vote(answers),
            )
        )
    return choices


def answer_of(text: str, marker: str) -> str | None:
    """The answer behind the first marker, in one form for equal numbers; None where there is none."""
    _, found, rest = text.partition(marker)
    answer = " ".join(rest.split("\n", 1)[0].split())
    if not found or not answer:
        return None
    try:
        number = Decimal(answer.replace(",", "").rstrip("."))
        return format(number.normalize(), "f") if abs(number.adjusted()) < 100 else answer
    except (InvalidOperation, ValueError):
        return answer


def choose_file(
    source: Path,
    target: Path,
    prm: ProcessRewardModel,
    irm: InstructionRewardModel | None = None,
    *,
    delimiter: str = "\n",
    marker: str = "####",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Writes the rows of `source` with their choices. Lines that cannot be read go to TARGET.set_aside.jsonl with number and reason.

    Raises UserError where there is no other.
    """
    rows: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    for number, line in numbered_lines(source):
        try:
            rows.append(Asked.model_validate_json(line).model_dump())
        except ValidationError as error:
            first = error.errors()[0]
            aside.append({"line": number, "reason": f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip(), "text": line})
    if not rows:
        raise UserError(f"{source}: no row can be read ({_first(aside)})", fix='give rows of {"question", "completions"}')
    _write(target, _with_choices(rows, prm, irm, delimiter=delimiter, marker=marker, batch_size=batch_size))
    beside = target.with_name(target.name + ".set_aside.jsonl")
    if aside:
        _write(beside, aside)
    else:
        beside.unlink(missing_ok=True)
    return {"rows": len(rows), "completions": sum(len(row["completions"]) for row in rows), "set_aside": len(aside), "output": str(target)}


def _first(aside: Sequence[dict[str, Any]]) -> str:
    return f"line {aside[0]['line']}: {aside[0]['reason']}" if aside else "it is empty"


def _with_choices(
    rows: Sequence[dict[str, Any]], prm: ProcessRewardModel, irm: InstructionRewardModel | None, **how: Any
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        questions = [row["question"] for row in part]
        rates = irm.score(questions) if irm is not None else [None] * len(part)
        for row, choice, rate in zip(part, choose(prm, questions, [row["completions"] for row in part], **how), rates, strict=True):
            yield row | vars(choice) | ({"instruction": rate} if irm is not None else {})


def _write(file: Path, rows: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> None:
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(file)
