"""Judged steps: Math-Shepherd (arXiv 2312.08935), PRM800K (2305.20050), ProcessBench (2412.06559), TRL's stepwise supervision, steps.jsonl.

The record is a `SteppedSolution`; its `extra` has the columns that it knows nothing of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from reward_models.formats.base import Format, Row, difference_of, has, patched, take, text_at, text_list, validated, with_extra, without
from reward_models.records import SteppedSolution, problem_id

TAG = "ки"  # Math-Shepherd's end of a step


def _judged(form: str, question: str, steps: Sequence[str], labels: Sequence[float | None], extra: Row, **known: Any) -> SteppedSolution:
    """The record of a foreign row: our own fields from the column `rlef_steps`, where it has been here before."""
    fields: Row = {"version": 1, "problem_id": problem_id(question), "question": question, "steps": list(steps)}
    fields |= {"labels": list(labels), "labeller": form, **known}
    if "rlef_steps" in extra:
        fields = patched(fields, extra["rlef_steps"], "rlef_steps", ("question", "steps"))
    extra = without(extra, "rlef_steps")
    solution = validated(SteppedSolution, fields | ({"extra": extra} if extra else {}))
    if any(said is not None and said != label for said, label in zip(labels, solution.labels, strict=False)):
        raise ValueError("its labels and those in rlef_steps disagree")
    return solution


def _own(solution: SteppedSolution) -> Row:
    return solution.model_dump(mode="json", exclude_unset=True, exclude={"extra"})


def _with_difference(solution: SteppedSolution, row: Row, read: Callable[[Row], list[SteppedSolution]]) -> Row:
    """The row, and in `rlef_steps` what it does not say of the record by itself."""
    plain = read(row)[0]
    if (plain.question, plain.steps) != (solution.question, solution.steps):
        raise ValueError("its question and steps would be read back as others")
    difference = difference_of(_own(solution), _own(plain))
    return with_extra(row, {"rlef_steps": difference} if difference else {})


def _hard(labels: Sequence[float | None]) -> list[bool]:
    for number, label in enumerate(labels, 1):
        if label is None:
            raise ValueError(f"step {number} is not judged, and the format has right and wrong alone")
        if label not in (0, 1):
            raise ValueError(f"step {number} has the soft label {label:g}, and the format has right and wrong alone")
    return [label == 1 for label in labels]


def read_steps(row: Row) -> list[SteppedSolution]:
    """Our steps.jsonl."""
    return [validated(SteppedSolution, row)]


def write_steps(solution: SteppedSolution) -> Row:
    return solution.model_dump(mode="json", exclude_unset=True)


def read_math_shepherd(row: Row) -> list[SteppedSolution]:
    """`input` has question and steps with a tag at each step's end, `label` the same text with + or - in its place. The numbering
    ("Step 1: ") is the format's, as the tags are; where a row spells it otherwise, both columns are kept as they stand."""
    written = {"input": text_at(row, "input"), "label": text_at(row, "label")}
    question, steps, labels = _untagged(written["input"], written["label"])
    extra = without(row, "input", "label")
    if _tagged(question, steps, labels) != written:
        extra = with_extra({"math_shepherd": written}, extra)
    return [_judged("math_shepherd", question, steps, [float(label) for label in labels], extra)]


def write_math_shepherd(solution: SteppedSolution) -> Row:
    """Raises ValueError for labels that are neither right nor wrong."""
    labels = _hard(solution.labels)
    extra = solution.extra or {}
    written, kept = _tagged(solution.question, solution.steps, labels), extra.get("math_shepherd")
    if isinstance(kept, dict) and _untagged(text_at(kept, "input"), text_at(kept, "label")) == (solution.question, solution.steps, labels):
        written, extra = kept, without(extra, "math_shepherd")
    return _with_difference(solution, with_extra(written, extra), read_math_shepherd)


def _tagged(question: str, steps: Sequence[str], labels: Sequence[bool]) -> dict[str, str]:
    numbered = [f"Step {number}: {step}" for number, step in enumerate(steps, 1)]
    signs = ["+" if label else "-" for label in labels]
    return {
        "input": f"{question} " + "\n".join(f"{step} {TAG}" for step in numbered),
        "label": f"{question} " + "\n".join(f"{step} {sign}" for step, sign in zip(numbered, signs, strict=True)),
    }


def _untagged(text: str, label: str) -> tuple[str, tuple[str, ...], list[bool]]:
    """Question, steps and labels. A tag that `label` repeats is part of the text."""
    parts = text.split(TAG)
    pieces, signs, piece, at = [], [], parts[0], 0
    for number, (part, following) in enumerate(pairwise(parts), 1):
        if not label.startswith(part, at):
            raise ValueError(f"label is not the text of input with + and - for the tags (before tag {number} of {len(parts) - 1})")
        at += len(part)
        if label.startswith(("+", "-"), at):
            pieces.append(piece)
            signs.append(label[at] == "+")
            piece, at = following, at + 1
        elif label.startswith(TAG, at):
            piece, at = piece + TAG + following, at + len(TAG)
        else:
            raise ValueError(f"tag {number} of {len(parts) - 1} in input has no + or - in label")
    if label[at:] != parts[-1]:
        raise ValueError(f"label goes on otherwise than input after {len(signs)} + and -")
    if not pieces or piece.strip():
        raise ValueError("text after the last tag" if pieces else f"no step tag ({TAG}) in input")
    starts = [found.start() for found in re.finditer("[Ss]tep 1:", pieces[0])]
    if not starts:
        raise ValueError("no 'Step 1:' before the first tag: it cannot be seen where the question ends")
    question, pieces[0] = pieces[0][: starts[-1]], pieces[0][starts[-1] :]
    exact = [piece.removeprefix("\n").removesuffix(" ") for piece in pieces]
    if all(step.startswith(f"Step {number}: ") for number, step in enumerate(exact, 1)):
        exact = [step.removeprefix(f"Step {number}: ") for number, step in enumerate(exact, 1)]
        if _tagged(question.removesuffix(" "), exact, signs)["input"] == text:
            return question.removesuffix(" "), tuple(exact), signs
    loose = [piece.strip() for piece in pieces]
    if all(step.startswith(f"Step {number}:") for number, step in enumerate(loose, 1)):
        loose = [step.removeprefix(f"Step {number}:").strip() for number, step in enumerate(loose, 1)]
    return question.strip(), tuple(loose), signs


def read_prm800k(row: Row) -> list[SteppedSolution]:
    """A labelling session: the chain of steps that went on, and for each candidate that did not the chain up to it. Rating 1 is 1, -1 is 0,
    0 (neutral) is 0.5, null is not judged. A beginning that another solution repeats is none of its own."""
    question, label = take(row, "question", dict, "object"), take(row, "label", dict, "object")
    chain: list[Row] = []
    paths: list[list[Row]] = []
    for number, step in enumerate(take(label, "steps", list, "list"), 1):
        try:
            candidates, chosen = _candidates(step)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
        paths += [[*chain, candidate] for place, candidate in enumerate(candidates) if place != chosen]
        if chosen is not None:
            chain = [*chain, candidates[chosen]]
        elif number < len(label["steps"]):
            raise ValueError(f"step {number}: none of its completions was chosen, but steps follow")
    if chain and not any(path[: len(chain)] == chain for path in paths):
        paths.append(chain)
    if not paths:
        raise ValueError("no step with a completion")
    beside = without(row, "question", "label") | {"question": without(question, "problem"), "label": without(label, "steps")}
    out = []
    for path in paths:
        labels = [None if step.get("rating") is None else (step["rating"] + 1) / 2 for step in path]
        extra = {"prm800k": beside | {"completions": [without(step, "text", "rating") for step in path]}}
        out.append(_judged("prm800k", text_at(question, "problem"), [step["text"] for step in path], labels, extra))
    return out


def _candidates(step: Any) -> tuple[list[Row], int | None]:
    """The completions of a step, a human's last, and the place of the one that the labeller went on with."""
    if not isinstance(step, dict):
        raise ValueError("no object")
    completions = step.get("completions") or []
    human, chosen = step.get("human_completion"), step.get("chosen_completion")
    if not isinstance(completions, list):
        raise ValueError("completions is no list")
    for candidate in [*completions, *([] if human is None else [human])]:
        if not isinstance(candidate, dict) or not isinstance(candidate.get("text"), str):
            raise ValueError("a completion without text")
        rating = candidate.get("rating")
        if isinstance(rating, bool) or rating not in (-1, 0, 1, None):
            raise ValueError(f"rating {rating!r} is none of -1, 0, 1, null")
    if chosen is not None and (not isinstance(chosen, int) or isinstance(chosen, bool) or not 0 <= chosen < len(completions)):
        raise ValueError(f"chosen_completion {chosen!r}, but {len(completions)} completions")
    beside = without(step, "completions", "human_completion", "chosen_completion")
    candidates = [with_extra(candidate, beside) for candidate in [*completions, *([] if human is None else [human])]]
    return candidates, len(completions) if human is not None and chosen is None else chosen


def read_processbench(row: Row) -> list[SteppedSolution]:
    """`label` is the first wrong step, counted from 0, or -1. What follows it is not judged."""
    steps, first = text_list(row, "steps"), take(row, "label", int, "whole number")
    if not -1 <= first < len(steps):
        raise ValueError(f"label {first}, but {len(steps)} steps")
    labels = [1.0 if first < 0 or place < first else 0.0 if place == first else None for place in range(len(steps))]
    correct = {"correct": row["final_answer_correct"]} if "final_answer_correct" in row else {}
    extra = without(row, "problem", "steps", "label", "final_answer_correct")
    return [_judged("processbench", text_at(row, "problem"), steps, labels, extra, **correct)]


def write_processbench(solution: SteppedSolution) -> Row:
    """The first wrong step alone; raises ValueError where that is not all that the labels say."""
    first = next((place for place, label in enumerate(solution.labels) if label == 0), -1)
    _hard(solution.labels if first < 0 else solution.labels[:first])
    row = {"problem": solution.question, "steps": list(solution.steps), "label": first}
    if "correct" in solution.model_fields_set:
        row["final_answer_correct"] = solution.correct
    return _with_difference(solution, with_extra(row, solution.extra or {}), read_processbench)


def read_trl_stepwise(row: Row) -> list[SteppedSolution]:
    """TRL's stepwise supervision."""
    steps, labels = text_list(row, "completions"), take(row, "labels", list, "list")
    if len(steps) != len(labels):
        raise ValueError(f"{len(steps)} completions but {len(labels)} labels")
    if any(label not in (True, False) for label in labels):
        raise ValueError("labels are not all true or false")
    extra = without(row, "prompt", "completions", "labels")
    return [_judged("trl_stepwise", text_at(row, "prompt"), steps, [float(label) for label in labels], extra)]


def write_trl_stepwise(solution: SteppedSolution) -> Row:
    row = {"prompt": solution.question, "completions": list(solution.steps), "labels": _hard(solution.labels)}
    return _with_difference(solution, with_extra(row, solution.extra or {}), read_trl_stepwise)


FORMATS = (
    Format("steps", "judged steps", lambda row: has(row, problem_id=str, steps=list, labels=list), read_steps, write_steps),
    Format(
        "math_shepherd", "judged steps",
        lambda row: has(row, input=str, label=str) and TAG in row["input"], read_math_shepherd, write_math_shepherd,
    ),
    Format("prm800k", "judged steps", lambda row: has(row, question=dict, label=dict), read_prm800k, None),
    Format(
        "processbench", "judged steps",
        lambda row: has(row, problem=str, steps=list, label=int), read_processbench, write_processbench,
    ),
    Format(
        "trl_stepwise", "judged steps",
        lambda row: has(row, prompt=str, completions=list, labels=list), read_trl_stepwise, write_trl_stepwise,
    ),
)  # fmt: skip
