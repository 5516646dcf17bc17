"""The contract of the label files: ranked lists of instructions for the IRM, judged steps for the PRM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reward_models.errors import UserError
from reward_models.nearest import meant_path

R = TypeVar("R", bound=BaseModel)


class RankedItem(BaseModel):
    """One instruction of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    rank: int = Field(ge=0, description="0 is the best; equal ranks are ties")
    scores: dict[str, float] = Field(
        default_factory=dict,
        description="definition, precision, integrity, or what else the rank is made of, each in 0..1",
    )
    recorded: dict[str, float] | None = Field(default=None, description="scores of other aspects, each in 0..1")
    kind: str | None = Field(default=None, description="what is wrong with it (metrics are split by this); None: nothing known")


class RankedList(BaseModel):
    """Versions of one seed instruction, ranked by quality."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    seed_id: str = Field(description="train and held-out are split by this, never by pair")
    items: tuple[RankedItem, ...] = Field(min_length=2)
    labeller: str
    split: Literal["train", "held_out"] | None = Field(default=None, description="None: the trainer splits by seed_id")


class SteppedSolution(BaseModel):
    """A solution with a label at each step."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    problem_id: str = Field(description="train and held-out are split by this")
    question: str
    steps: tuple[str, ...] = Field(min_length=1, description="the final answer line, where there is one, is the last step")
    labels: tuple[float | None, ...] = Field(description="1 right, 0 wrong, between: soft; None: not judged (not trained on)")
    labeller: str
    rates: tuple[float | None, ...] | None = Field(
        default=None, description="q: share of completions from the end of each step that reached the answer; None: not measured"
    )
    samples: int | None = Field(default=None, description="N: completions a prefix. The last step's rate is its own answer's, 0 or 1")
    equations: tuple[float | None, ...] | None = Field(
        default=None, description="a calculator's verdict on each step, which `labels` hold as well: 0 a wrong equation, 1 right ones alone"
    )
    judged: tuple[float | None, ...] | None = Field(
        default=None, description="a judge's verdict on each step, where `labels` are its consensus with the completions"
    )
    temperature: float | None = Field(default=None, description="that the solution was sampled at")
    seed: int | None = None
    depth: int | None = None
    answer: str | None = Field(default=None, description="canonical answer, for weighted votes")
    correct: bool | None = Field(default=None, description="whether that answer is right, where known")
    split: Literal["train", "held_out"] | None = None
    extra: dict[str, Any] | None = Field(
        default=None, description="other columns of the file that it was imported from; nothing reads them"
    )

    @model_validator(mode="after")
    def _one_label_a_step(self) -> SteppedSolution:
        if len(self.labels) != len(self.steps):
            raise ValueError(f"{len(self.steps)} steps but {len(self.labels)} labels")
        for name in ("rates", "equations", "judged"):
            kept = getattr(self, name)
            if kept is not None and len(kept) != len(self.steps):
                raise ValueError(f"{len(self.steps)} steps but {len(kept)} {name}")
        verdicts = (*self.labels, *(self.rates or ()), *(self.equations or ()), *(self.judged or ()))
        if any(label is not None and not 0.0 <= label <= 1.0 for label in verdicts):
            raise ValueError("labels, rates, equations and judged must lie in 0..1")
        return self


def problem_id(question: str, salt: str = "") -> str:
    """A stable id of 16 hex digits: equal texts have equal ids."""
    return hashlib.sha256(f"{salt}\n{' '.join(question.split())}".encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, which need not fit into memory."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a JSONL file that are not blank, counted from 1. Raises UserError where it is missing or no UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file{meant_path(path)}", fix="give the label file's path")
    try:
        # Not splitlines: U+2028 and others may stand inside a JSON text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})", fix="save it as UTF-8") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_records(path: str | Path, record: type[R]) -> list[R]:
    """All rows of a label file. Raises UserError with the line of the first bad row, or where there is no row at all."""
    rows = []
    for number, line in numbered_lines(path):
        try:
            rows.append(record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{path}, line {number}: {'.'.join(map(str, first['loc']))} {first['msg']}", fix="mend or remove that line"
            ) from None
    if not rows:
        raise UserError(f"{path}: no row", fix="give a file with at least one label")
    return rows


def is_held_out(row: RankedList | SteppedSolution, fraction: float = 0.15) -> bool:
    """By the row's own `split`, else by a hash of the seed or problem, so that all rows of one stay on one side."""
    if row.split is not None:
        return row.split == "held_out"
    return _drawn(_key(row), fraction)


def is_development(row: RankedList | SteppedSolution, fraction: float = 0.1) -> bool:
    """Of the rows that are not held out, those to choose weights by, by seed or problem: held-out rows must not be the ones chosen on."""
    return _drawn(f"development/{_key(row)}", fraction)


def _key(row: RankedList | SteppedSolution) -> str:
    return row.seed_id if isinstance(row, RankedList) else row.problem_id


def _drawn(key: str, fraction: float) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < fraction * 2**32


@dataclass(frozen=True)
class Candidate:
    """One solution of a problem. `answer` is canonical, None where none was found: such a one neither votes nor is right."""

    correct: bool
    score: float
    answer: str | None = None
