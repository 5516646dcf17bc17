"""What the lm-eval tasks of this folder call: a run's held-out problems, rlef's grader, and a filter that chooses by a run's PRM."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.filter import Filter
from lm_eval.api.registry import filter_registry, register_filter

from reward_models.choosing import Choice, choose
from reward_models.process import ProcessRewardModel
from rlef.answers import extract_answer, same_answer
from rlef.load_config import config_of
from rlef.prompts import question_messages
from rlef.records import Problem, read_jsonl
from rlef.run_dir import RunDir

Doc = dict[str, Any]


def problems(run: str, count: int | None = None, plain: bool = False, **_: Any) -> dict[str, Dataset]:
    """The first `count` held-out problems of the run directory `run`, as lm-eval's --metadata names them; all without a number.

    `plain`: the policy has no chat template, and is asked without one, as in the run.
    """
    config, folder = config_of(run), RunDir(run)
    source = next(name for name, stage in config.stages.items() if stage.kind == "problems")
    judges = [name for name, stage in config.stages.items() if stage.kind == "prm" and folder.manifest(name) is not None]
    rows = [
        {
            "id": problem.id,
            "question": problem.question,
            "prompt": "".join(f"{one['content']}\n" for one in asked) if plain else asked[-1]["content"],
            "answer": problem.answer,
            "marker": config.model.answer_marker,
            "delimiter": config.model.step_delimiter,
            "prm": str(folder.stage(judges[-1]) / "model") if judges else "",
        }
        for problem in read_jsonl(folder.stage(source) / "held_out.jsonl", Problem)[:count]
        for asked in [question_messages(problem.question, config.model)]
    ]
    return {"test": Dataset.from_list(rows)}


def graded(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """By the grader of evaluation and rewards."""
    answer = extract_answer(results[0], doc["marker"])
    return {"exact_match": float(answer is not None and same_answer(answer, doc["answer"], doc["question"]))}


class RlefChoice(Filter):
    """Of a problem's answers one, in a list: the winner by `how`, a field of reward_models.choosing.Choice, behind the answer marker."""

    def __init__(self, how: str) -> None:
        self.how = how

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
        texts = tuple(map(tuple, resps))
        first = docs[0]
        questions = tuple(doc["question"] for doc in docs)
        chosen = [getattr(one, self.how) for one in choices(first["prm"], questions, texts, first["delimiter"], first["marker"])]
        return [[f"{first['marker']} {answer}" if answer is not None else ""] for answer in chosen]


@functools.cache
def choices(prm: str, questions: tuple[str, ...], texts: tuple[tuple[str, ...], ...], delimiter: str, marker: str) -> list[Choice]:
    """Scored once for all filters."""
    if not Path(prm).is_dir():
        raise FileNotFoundError("the run has no finished process reward model to choose by")
    return choose(ProcessRewardModel.load(prm), questions, texts, delimiter=delimiter, marker=marker)


if "rlef_choice" not in filter_registry:  # lm-eval reads this file once for each name that a task takes from it
    register_filter("rlef_choice")(RlefChoice)
