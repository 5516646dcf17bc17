"""What a teacher can be asked: to evolve, to answer, to rank instructions, to judge steps.

Two implementations: rlef.symbolic.teacher and rlef.evolution.chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from rlef.records import Aspect, Problem, Solution

ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
QUALITIES: tuple[Aspect, ...] = ASPECTS[:3]  # WizardMath's three aspects of instruction quality; a later version has difficulty too


@dataclass(frozen=True)
class Quality:
    """Scores of one instruction in 0..1; `kind` names a known flaw (reports split by it); None where nothing is known."""

    definition: float
    precision: float
    integrity: float
    kind: str | None = None
    difficulty: float | None = None

    def score(self, aspect: Aspect) -> float | None:
        scores = self.definition, self.precision, self.integrity, self.difficulty
        return dict(zip(ASPECTS, scores, strict=True))[aspect]

    def total(self, aspects: Sequence[Aspect] = QUALITIES) -> float | None:
        """The sum over `aspects`, equal sums being equal numbers; None where one is not known."""
        scores = [self.score(aspect) for aspect in aspects]
        return None if None in scores else round(sum(score for score in scores if score is not None), 9)


class Evolver(Protocol):
    """`operations` of each domain are dotted: line and name, e.g. up.add_step, down.drop_step, breadth.new_topic."""

    name: str
    operations: Mapping[str, Sequence[str]]

    def evolve(self, parents: Sequence[Problem], operations: Sequence[str], *, round: int, seed: int) -> list[Problem | None]:
        """One child (with lineage) a parent; None where the teacher produced nothing usable."""
        ...


class Responder(Protocol):
    """Answers problems, so many samples each."""

    name: str

    def respond(self, problems: Sequence[Problem], samples: int, *, seed: int) -> list[list[Solution]]: ...


class InstructionJudge(Protocol):
    """Scores instructions, or ranks versions of one."""

    name: str

    def versions(self, problem: Problem, count: int, *, seed: int) -> list[Problem]:
        """`count` versions of one instruction, of differing quality, to be ranked."""
        ...

    def judge_instructions(self, problems: Sequence[Problem], *, seed: int) -> list[Quality | None]: ...


class StepJudge(Protocol):
    """Judges the steps of solutions."""

    name: str

    def judge_steps(self, problems: Sequence[Problem], solutions: Sequence[Sequence[str]], *, seed: int) -> list[list[float | None]]:
        """A label a step (1 right, 0 wrong, None not judged). The final answer line, where present, is the last step."""
        ...
