"""The rows that pass between stages: one JSON object a line, one schema each, versioned.

`read_jsonl` is the only reader and `write_jsonl` the only writer of these files. A row that does not parse is
counted and set aside with its line number, never silently dropped; a file without one good row is a user's mistake.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from reward_models.nearest import meant_path
from reward_models.records import Candidate
from reward_models.records import problem_id as problem_id  # of the rows below too
from rlef.errors import UserError

SCHEMA_VERSION = 1
Domain = Literal["math", "code", "general"]
Aspect = Literal["definition", "precision", "integrity", "difficulty"]  # of an instruction, as a judge scores it


class Record(BaseModel):
    """A frozen row; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = SCHEMA_VERSION


class Lineage(BaseModel):
    """Where an evolved problem comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: str  # id of the problem it was made from
    root: str  # id of the seed at the start of the line
    operation: str  # e.g. "up.add_step", "down.easier", "breadth.new_topic"
    round: int  # 1 for the first round
    teacher: str  # who wrote it: "symbolic" or the model's name
    finished: bool | None = None  # False: cut off at max_tokens; None: not known


class Truth(BaseModel):
    """What is known exactly of a symbolic problem. Only the symbolic teacher and the report may read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    program: dict[str, Any]  # rlef.symbolic.programs.Program as JSON
    shape: str  # the operations and how they hang together, without numbers, names or topic
    flaw: str | None = None  # None: sound; else the kind of flaw


class Problem(Record):
    """One instruction, with its answer and solution where they are known."""

    id: str
    question: str
    answer: str | None = None  # canonical text of the gold answer
    solution: tuple[str, ...] | None = None  # steps, without the final answer line
    source: str = ""  # file, dataset or generator
    domain: Domain = "math"
    depth: int | None = None  # number of reasoning steps, where known
    lineage: Lineage | None = None  # None for a seed
    pass_rate: float | None = None  # 0..1, how far a policy solves it (rlef.rl.difficulty), where that was measured
    truth: Truth | None = None
    extra: dict[str, Any] | None = None  # other columns of the file that it was imported from; no stage reads them


class Eliminated(Record):
    """An evolved problem that was dropped, with the rule that dropped it."""

    problem: Problem
    rule: str
    detail: str = ""  # id of the problem that it repeats, where the rule names one


class Contamination(Record):
    """An evolved problem beside the held-out one that it repeats."""

    evolved_id: str
    test_id: str
    evolved: str
    test: str
    rule: str
    ratio: float  # share of the test's word 5-grams found, or cosine; 1 for an equal shape
    dropped: bool  # False: reported alone


class MethodCandidate(Record):
    """A template that the optimiser wrote for one operation, how it did on the development parents, and whether it took the place."""

    operation: str  # domain.line.name
    step: int  # of that operation, from 1
    number: int | None = None  # of its file versions/<number>.yaml; None: not a method, see `reason`
    parent: int  # number of the version it should improve
    analysis: str  # why evolutions failed, in the optimiser's words
    template: str
    kept: bool
    reason: str | None = None  # why not: not_a_template, repeats, copies_example, not_better, another_was_better
    n: int | None = None  # development parents, the same with the same seeds for all of a step; None: not measured
    failures: dict[str, int] = {}  # by rule
    failure_rate: float | None = None
    ci95: tuple[float, float] | None = None
    incumbent_rate: float | None = None  # of `parent` on the same
    difference: dict[str, Any] | None = None  # failure rate minus the incumbent's over the same parents: mean, ci95


class Solution(Record):
    """An answer to a problem, by a teacher or a policy: stepped for math; otherwise a text, without steps or final answer."""

    problem_id: str
    question: str
    steps: tuple[str, ...]  # without the final answer line
    answer: str | None = None  # extracted and canonical; None: none found, or none to be found
    text: str  # the whole answer as it was written
    writer: str  # "seed", a teacher's name, or a policy's stage
    sample: int = 0
    temperature: float | None = None
    agreement: float | None = None  # share of the samples with this answer, for self-consistency
    finished: bool | None = None  # False: cut off at max_tokens; None: not known
    extra: dict[str, Any] | None = None  # as a Problem's


class PassRate(Record):
    """How far the policy solved one prompt in one iteration."""

    problem_id: str
    iteration: int
    pass_rate: float  # 0..1, see rlef.rl.difficulty
    samples: int


class Rollout(Record):
    """One sampled answer with all parts of its reward."""

    problem_id: str
    iteration: int
    sample: int
    question: str
    text: str
    step_scores: tuple[float, ...]
    instruction: float  # r_I
    answer: float  # r_A
    total: float  # r_I * r_A, before penalties
    masked: bool = False  # a factor is missing, and scores stand at 0
    length: int  # tokens, EOS included
    finished: bool  # ended by a stop token


class PairRow(BaseModel):
    """A pair that DPO learned from, as it is stored for the reader."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    round: int
    problem_id: str
    question: str
    prefix: tuple[str, ...] = ()  # of a pair of steps: the right steps before them
    chosen: str
    rejected: str
    chosen_reward: float  # r_A of an answer, p_k of a step
    rejected_reward: float
    instruction: float


class Outcome(BaseModel):
    """A policy's answer to a held-out problem; the k-sample fields are None where only the greedy answer was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    problem_id: str
    depth: int | None = None
    text: str  # greedy
    answer: str | None = None
    right: bool
    finished: bool
    sampled_right: int | None = None
    majority: bool | None = None
    prm_vote: bool | None = None
    best: bool | None = None
    candidates: tuple[Candidate, ...] | None = None  # the k samples, scored where there is a reward model: reward_models.curves reads them
    unjudged: int | None = None  # samples that the prm could not judge, of weight 0


R = TypeVar("R", bound=BaseModel)


class BadRow(BaseModel):
    """A line that did not parse."""

    line: int  # 1-based
    error: str


class SetAside(BadRow):
    """The same with the line itself, so that it can be mended and read again."""

    file: str
    text: str


class Rows(list[R], Generic[R]):
    """Good rows, with the bad ones beside them."""

    bad: list[BadRow]


def read_jsonl(path: str | Path, record: type[R], *, strict: bool = True, may_be_empty: bool = False) -> Rows[R]:
    """Read a JSONL file. `strict` (files that a stage wrote): the first bad line is an error; otherwise bad lines are collected in `.bad`.

    Raises UserError when the file is missing, has no good row (unless it is empty and may be), or (strict) has a bad line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file{meant_path(path)}", fix="check the path in the config or on the command line")
    rows: Rows[R] = Rows()
    rows.bad = []
    with path.open("rb") as handle:  # what is no UTF-8 is one bad line, not the end
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                rows.append(record.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                rows.bad.append(BadRow(line=number, error=f"{where}: {first['msg']}" if where else first["msg"]))
                if strict:
                    raise UserError(f"{path}, line {number}: {rows.bad[-1].error}", fix="mend or remove that line") from None
    if not rows and not (may_be_empty and not rows.bad):
        reason = f"line {rows.bad[0].line}: {rows.bad[0].error}" if rows.bad else "the file is empty"
        raise UserError(f"{path}: no usable row ({reason})", fix="give a JSONL file with at least one good row")
    return rows


def write_jsonl(path: str | Path, rows: Iterable[BaseModel]) -> int:
    """Write all rows to a temporary name, then rename: the file is whole or absent. Returns the number of rows."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row.model_dump(mode="json", exclude_none=True), ensure_ascii=False) + "\n")
            count += 1
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    return count
