"""The chat teacher: evolves, answers, ranks and judges by asking a chat model, with parsing that tolerates what models write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlef import prompts
from rlef.answers import canonical
from rlef.config import ModelSection
from rlef.evolution.operations import Templates, read_operations
from rlef.records import Lineage, Problem, Solution, problem_id
from rlef.rollout.remote import ChatModel
from rlef.teacher import QUALITIES, Quality

_PREFIX = re.compile(r"^\s*(?:\**(?:new |rewritten )?(?:problem|instruction|task)\**\s*:\**|here is[^\n]*:)\s*", re.IGNORECASE)

# Numbers by enumeration: not every server that takes a schema knows minimum and maximum.
QUALITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(range(11))} for name in QUALITIES},
    "required": list(QUALITIES),
    "additionalProperties": False,
}


class ChatTeacher:
    """Evolver, Responder, InstructionJudge and StepJudge over one chat model."""

    def __init__(
        self, chat: ChatModel, model: ModelSection, *, temperature: float, max_tokens: int, templates: Templates | None = None
    ) -> None:
        self.chat, self.model, self.temperature, self.max_tokens = chat, model, temperature, max_tokens
        self.templates = templates or read_operations()
        self.operations = {domain: tuple(known) for domain, known in self.templates.items()}
        self.name = chat.name

    def _ask(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        temperature: float | None = None,
        max_tokens: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        answers = self.chat.complete(
            [[{"role": "user", "content": text}] for text in texts],
            temperature=self.temperature if temperature is None else temperature,
            max_tokens=max_tokens or self.max_tokens,
            seed=seed,
            schema=schema,
        )
        return [answer or "" for answer in answers]

    def evolve(self, parents: Sequence[Problem], operations: Sequence[str], *, round: int, seed: int) -> list[Problem | None]:
        texts = [
            self.templates[parent.domain][operation].replace("{question}", parent.question)
            for parent, operation in zip(parents, operations, strict=True)
        ]
        children: list[Problem | None] = []
        for parent, operation, answer in zip(parents, operations, self._ask(texts, seed=seed + 1000 * round), strict=True):
            question = _PREFIX.sub("", answer).strip()
            root = parent.lineage.root if parent.lineage else parent.id
            lineage = Lineage(parent=parent.id, root=root, operation=operation, round=round, teacher=self.name)
            children.append(
                Problem(id=problem_id(question), question=question, source=self.name, domain=parent.domain, lineage=lineage)
                if question
                else None
            )
        return children

    def respond(self, problems: Sequence[Problem], samples: int, *, seed: int) -> list[list[Solution]]:
        ask = prompts.RESPOND.replace("{marker}", self.model.answer_marker)
        wanted = [(problem, sample) for problem in problems for sample in range(samples)]
        answers = self._ask([ask.replace("{question}", problem.question) for problem, _ in wanted], seed=seed)
        solutions: dict[str, list[Solution]] = {problem.id: [] for problem in problems}
        for (problem, sample), text in zip(wanted, answers, strict=True):
            steps, answer = prompts.split_answer(text, self.model)
            body = tuple(step for step in steps if self.model.answer_marker not in step)
            solutions[problem.id].append(
                Solution(
                    problem_id=problem.id,
                    question=problem.question,
                    steps=body,
                    answer=canonical(answer, problem.question) if answer is not None else None,
                    text=text,
                    writer=self.name,
                    sample=sample,
                    temperature=self.temperature,
                )
            )
        return [solutions[problem.id] for problem in problems]

    def versions(self, problem: Problem, count: int, *, seed: int) -> list[Problem]:
        """The instruction itself and evolved versions of it, each by another operation."""
        known = self.operations[problem.domain]
        operations = [known[place % len(known)] for place in range(count - 1)]
        made = self.evolve([problem] * len(operations), operations, round=1, seed=seed)
        return list({one.question: one for one in [problem, *made] if one is not None}.values())

    def judge_instructions(self, problems: Sequence[Problem], *, seed: int) -> list[Quality | None]:
        """Ratings of each aspect. Where the model can be asked for its probabilities, the mean rating under them (G-Eval, arXiv
        2303.16634, section 3): a small judge that always writes the same number still ranks."""
        asked: list[list[prompts.Message]] = [
            [{"role": "user", "content": prompts.JUDGE_INSTRUCTION.format(question=problem.question)}] for problem in problems
        ]
        means = [self.chat.expected_digit(asked, opening) for opening in prompts.JUDGE_OPENINGS]
        if all(row is not None for row in means):
            return [Quality(*(value / 9 for value in values)) for values in zip(*means, strict=True)]  # type: ignore[arg-type]
        texts = [messages[0]["content"] for messages in asked]
        answers = self._ask(texts, seed=seed, temperature=0.0, max_tokens=60, schema=QUALITY_SCHEMA)
        return [parse_quality(answer) for answer in answers]

    def judge_steps(self, problems: Sequence[Problem], solutions: Sequence[Sequence[str]], *, seed: int) -> list[list[float | None]]:
        texts = [
            prompts.JUDGE_STEPS.format(
                question=problem.question, steps="\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
            )
            for problem, steps in zip(problems, solutions, strict=True)
        ]
        answers = self._ask(texts, seed=seed, temperature=0.0, max_tokens=16)
        return [parse_first_error(answer, len(steps)) for answer, steps in zip(answers, solutions, strict=True)]

    def judge_same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the two texts of each pair ask for the same with the same difficulty: the rule of no information gain."""
        texts = [prompts.SAME_PROBLEM.format(first=first, second=second) for first, second in pairs]
        return [answer.lower().startswith("yes") for answer in self._ask(texts, seed=0, temperature=0.0, max_tokens=4)]


def parse_quality(text: str) -> Quality | None:
    """Three numbers 0..10 behind their names, as JSON or not; None where one is missing."""
    values = []
    for name in QUALITIES:
        match = re.search(rf"{name}\W{{1,6}}(\d+(?:\.\d+)?)", text, re.IGNORECASE)
        if match is None:
            return None
        values.append(min(10.0, float(match[1])) / 10)
    return Quality(*values)


def parse_first_error(text: str, steps: int) -> list[float | None]:
    """0 or no number above the steps: all right; k: right before step k, wrong there, not judged after. Nothing to read: not judged."""
    match = re.search(r"\d{1,4}", text)
    if match is None:
        return [None] * steps
    first = int(match[0])
    if first == 0 or first > steps:
        return [1.0] * steps
    return [1.0] * (first - 1) + [0.0] + [None] * (steps - first)
