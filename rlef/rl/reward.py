"""The one place where r = r_I * r_A: scores of sampled answers, and where on the tokens they are placed.

r_I in (0,1) comes from the instruction reward model and depends on the prompt alone; r_A is the least step score of the
process reward model (WizardMath, arXiv 2308.09583; the minimum is stated in its third version). Where either is missing the sample is
masked: no reward is made up for it. No gold answer is read unless `use_answers` is set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal, Protocol

from reward_models.process import StepScores, aggregate
from reward_models.steps import split_steps, step_end_tokens, token_byte_spans, until_answer
from rlef.answers import extract_answer, same_answer
from rlef.config import ModelSection
from rlef.models import decode
from rlef.records import Problem
from rlef.rl.functions import GradeFunction
from rlef.rollout.base import Completion

RewardMode = Literal["min_terminal", "running_min_delta", "step_sum", "step_clip", "step_delta", "soft_min"]


class InstructionScorer(Protocol):
    """Gives r_I, in [0, 1]; None where an instruction cannot be judged."""

    def score(self, instructions: list[str]) -> Sequence[float | None]: ...


class ProcessScorer(Protocol):
    """Gives each step of a solution its score; None where a solution cannot be judged."""

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]], batch_size: int) -> Sequence[StepScores | None]: ...


def judge(
    prm: ProcessScorer | GradeFunction,
    questions: Sequence[str],
    steps: Sequence[Sequence[str]],
    answers: Sequence[str | None],
    known: Sequence[str | None],
    batch_size: int,
) -> Sequence[StepScores | None]:
    """What `prm` gives each solution; None where it cannot judge. Final answers, given and known, are for a user's function alone."""
    if isinstance(prm, GradeFunction):
        return [prm.grade(*row) for row in zip(questions, steps, answers, known, strict=True)]
    return prm.score(questions, steps, batch_size)


@dataclass(frozen=True)
class Score:
    """All parts of one answer's reward."""

    text: str
    steps: tuple[str, ...]  # up to and including the final answer line; what follows it is not scored
    step_scores: tuple[float, ...]  # p_k in (0,1), one a step; of an outcome model one in all
    slots: tuple[int, ...]  # answer token at which each of them is final
    instruction: float  # r_I
    answer: float  # r_A = min p_k, or 0 with the reason in `zeroed`
    zeroed: str | None  # unfinished | no_answer | too_long | wrong_answer
    extracted: str | None  # the final answer's text
    steps_after_answer: int
    repeated_steps: int
    masked: bool = False  # a factor is missing, and scores stand at 0: the sample teaches nothing and counts in no mean

    @property
    def given(self) -> str | None:
        """The final answer of a whole solution that could be judged, right or wrong."""
        return self.extracted if self.zeroed in (None, "wrong_answer") and not self.masked else None

    @property
    def total(self) -> float:
        return self.instruction * self.answer


@dataclass(frozen=True)
class _Solution:
    """A completion as text."""

    text: str
    steps: list[str]  # up to the answer line
    slots: list[int]  # the token that closes each
    after: int  # steps after the answer line
    answer: str | None


class RewardFunction:
    """Scores (problem, completion) pairs. A policy answer is decoded to text and re-encoded by the PRM's own tokenizer."""

    def __init__(
        self,
        *,
        prm: ProcessScorer | GradeFunction,
        irm: InstructionScorer | None,
        tokenizer,
        model: ModelSection,
        stops: Sequence[int],
        use_answers: bool = False,
        verifiable: float = 0.0,
        batch_size: int = 128,
    ) -> None:
        self.prm, self.irm = prm, irm
        self.tokenizer, self.model, self.stops = tokenizer, model, tuple(stops)
        self.use_answers, self.verifiable, self.batch_size = use_answers, verifiable, batch_size
        self._settled: dict[str, float | None] | None = None

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Score]:
        """One score a pair, in order."""
        solutions = [self._parse(completion) for completion in completions]
        judged = self._judged(problems, solutions)
        instruction = self.instruction_scores([problem.question for problem in problems])
        return [self._joined(*row) for row in zip(problems, completions, solutions, judged, instruction, strict=True)]

    def _judged(self, problems: Sequence[Problem], solutions: Sequence[_Solution]) -> list[StepScores | None]:
        """The step scores of each solution: of the PRM, or one by the known answer. None where the PRM could not judge."""
        judged: list[StepScores | None] = [StepScores(())] * len(solutions)
        asked: list[int] = []
        for row, (problem, solution) in enumerate(zip(problems, solutions, strict=True)):
            if solution.steps and self._is_verifiable(problem):
                judged[row] = StepScores((float(_is_right(solution.answer, problem)),))
            elif solution.steps:
                asked.append(row)
        scored = judge(
            self.prm,
            [problems[row].question for row in asked],
            [solutions[row].steps for row in asked],
            [solutions[row].answer for row in asked],
            [problems[row].answer if self.use_answers else None for row in asked],
            self.batch_size,
        )
        for row, scores in zip(asked, scored, strict=True):
            judged[row] = scores
        return judged

    def _joined(
        self, problem: Problem, completion: Completion, solution: _Solution, judged: StepScores | None, instruction: float | None
    ) -> Score:
        """Both factors of one answer; it is masked where one is missing or no number."""
        unscored = Score(
            text=solution.text,
            steps=tuple(solution.steps),
            step_scores=(),
            slots=(),
            instruction=0.0,
            answer=0.0,
            zeroed=None,
            extracted=solution.answer,
            steps_after_answer=solution.after,
            repeated_steps=len(solution.steps) - len({" ".join(step.split()) for step in solution.steps}),
        )
        if judged is None or instruction is None or not all(map(math.isfinite, (instruction, *judged.scores))):
            return replace(unscored, masked=True)
        zeroed = None
        if not completion.finished:
            zeroed = "unfinished"
        elif not solution.steps or solution.answer is None:
            zeroed = "no_answer"
        elif judged.truncated:
            zeroed = "too_long"
        elif self.use_answers and problem.answer is not None and not _is_right(solution.answer, problem):
            zeroed = "wrong_answer"
        return replace(
            unscored,
            step_scores=() if judged.truncated else judged.scores,
            slots=() if judged.truncated else _judged_slots(solution.slots, judged.scores),
            instruction=instruction,
            answer=0.0 if zeroed else aggregate(judged.scores, "min"),
            zeroed=zeroed,
        )

    def _is_verifiable(self, problem: Problem) -> bool:
        """Whether the known answer alone is the prompt's r_A: for all its samples, in every iteration and on every rank."""
        return self.use_answers and problem.answer is not None and int(problem.id, 16) < self.verifiable * 16 ** len(problem.id)

    def instruction_scores(self, questions: Sequence[str]) -> list[float | None]:
        """r_I a question; 1 where the run has no instruction reward model, None where it could not judge. Each distinct question is scored
        once."""
        if self._settled is not None:
            return [self._settled[question] for question in questions]
        if self.irm is None:
            return [1.0] * len(questions)
        distinct = list(dict.fromkeys(questions))
        known = dict(zip(distinct, self.irm.score(distinct), strict=True))
        return [known[question] for question in questions]

    def settle_instructions(self, questions: Sequence[str]) -> None:
        """Score all questions that will come now, and let go of the instruction reward model: r_I never changes, its memory is wanted.

        A question that was not among them is a KeyError from here on.
        """
        self._settled = dict(zip(questions, self.instruction_scores(questions), strict=True))
        self.irm = None

    def _parse(self, completion: Completion) -> _Solution:
        text = decode(self.tokenizer, completion.tokens, self.stops)
        steps = split_steps(text, self.model.step_delimiter)
        counted = until_answer(steps, self.model.answer_marker)
        ends = [end for _, end in token_byte_spans(self.tokenizer, completion.tokens)]
        slots = step_end_tokens(ends, counted)
        # A step that no delimiter closed becomes final with the token that ends the answer.
        slots = [slot if step.closed else len(completion.tokens) - 1 for slot, step in zip(slots, counted, strict=True)]
        answer = extract_answer(text, self.model.answer_marker)
        return _Solution(text, [step.text for step in counted], slots, len(steps) - len(counted), answer)


def _is_right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and problem.answer is not None and same_answer(answer, problem.answer, problem.question)


def _judged_slots(slots: Sequence[int], scores: Sequence[float]) -> tuple[int, ...]:
    """An outcome model judges the last step alone."""
    return tuple(slots[-1:] if len(scores) == 1 else slots)


def place_rewards(score: Score, length: int, *, mode: RewardMode, clip_from: float = 0.9) -> list[float]:
    """Rewards a token of an answer of `length` >= 1 tokens, before penalties and the KL term: r_I times what STEP_REWARDS gives each
    step, where it becomes final. A zeroed answer gets on its last token what brings its sum to the least that one wrong step is worth.

    min_terminal pays on the last token and sums to r_I * r_A; running_min_delta sums to r_I * (r_A - 1): potential shaping of the former
    with Phi = M, the least score so far.
    """
    rewards = [0.0] * length
    if mode == "min_terminal":
        rewards[-1] = score.instruction * score.answer
        return rewards
    paid = STEP_REWARDS[mode](score.step_scores, clip_from)
    for slot, reward in zip(score.slots, paid, strict=True):
        rewards[slot] += score.instruction * reward
    if score.zeroed:
        rewards[-1] += score.instruction * (WORTH_NOTHING[mode] - sum(paid))
    return rewards


def running_min_delta(scores: Sequence[float], _: float = 0.0) -> list[float]:
    """M_k - M_{k-1}, M_k = min(M_{k-1}, p_k), M_0 = 1. Sums to min p - 1."""
    return [after - before for before, after in pairwise(accumulate(scores, min, initial=1.0))]


def step_sum(scores: Sequence[float], _: float = 0.0) -> list[float]:
    """p_k (Math-Shepherd's PPO). The sum grows with the number of steps, and a policy learns to write more of them."""
    return list(scores)


def step_clip(scores: Sequence[float], clip_from: float) -> list[float]:
    """min(p_k - clip_from, 0) (arXiv 2410.15115, Clip): copies of good steps pay nothing; fewer steps lose less."""
    return [min(score - clip_from, 0.0) for score in scores]


def step_delta(scores: Sequence[float], _: float = 0.0) -> list[float]:
    """p_k - p_{k+1}, p_{K-1} on the last step but one, 0 on the last (arXiv 2410.15115, Delta): what is still to come from step k on is
    p_k. Sums to p_1; of a single step to 0. A step's reward hangs on the next one: not causal."""
    return [*(one - after for one, after in pairwise(scores[:-1])), *scores[-2:-1], 0.0][: len(scores)]


def soft_min(scores: Sequence[float], _: float = 0.0) -> list[float]:
    """r_k softmax(-r / 0.1)_k with r = 2 p - 1 (PURE, arXiv 2504.15275): nearly min r, most of it on the worst step. Not causal."""
    values = [2 * score - 1 for score in scores]
    least = min(values, default=0.0)
    parts = [math.exp((least - value) / 0.1) for value in values]
    return [value * part / sum(parts) for value, part in zip(values, parts, strict=True)]


STEP_REWARDS: dict[str, Callable[[Sequence[float], float], list[float]]] = {
    "running_min_delta": running_min_delta, "step_sum": step_sum, "step_clip": step_clip, "step_delta": step_delta, "soft_min": soft_min,
}  # fmt: skip
WORTH_NOTHING = {"running_min_delta": -1.0, "step_sum": 0.0, "step_clip": -1.0, "step_delta": 0.0, "soft_min": -1.0}


def length_penalty(length: int, finished: bool, *, max_tokens: int, soft_tokens: int, soft_penalty: float, cut_off: float) -> float:
    """What an answer loses on its last token, >= 0: `cut_off` where max_tokens ended it, and `soft_penalty` times the share of the last
    `soft_tokens` allowed tokens that it used (DAPO's overlong ramp, arXiv 2503.14476)."""
    over = max(0, length - (max_tokens - soft_tokens))
    return (0.0 if finished else cut_off) + (soft_penalty * over / soft_tokens if soft_tokens else 0.0)
