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
from rlef.rollout.journal import Answer
from rlef.rollout.remote import ChatModel
from rlef.teacher import ASPECTS, QUALITIES, Quality

_PREFIX = re.compile(r"^\s*(?:\**(?:new |rewritten )?(?:problem|instruction|task)\**\s*:\**|here is[^\n]*:)\s*", re.IGNORECASE)

# Numbers by enumeration: not every server that takes a schema knows minimum and maximum.
QUALITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(range(11))} for name in ASPECTS},
    "required": list(ASPECTS),
    "additionalProperties": False,
}
QUALITY_TOKENS = 80  # of such an answer, at most
# The scores of one version: an object without others inside, behind its number where it is not inside.
_SCORED = re.compile(r'(?:"?(\d{1,3})"?\s*:\s*)?(\{[^{}]*\})')
_NUMBER = re.compile(r'\b(?:version|number|item|id)"?\s*:\s*"?(\d{1,3})', re.IGNORECASE)


def list_schema(count: int) -> dict[str, Any]:
    """Scores under each number from 1 to `count`: none can be left out or given twice."""
    numbers = [str(number) for number in range(1, count + 1)]
    properties = dict.fromkeys(numbers, QUALITY_SCHEMA)
    return {"type": "object", "properties": properties, "required": numbers, "additionalProperties": False}


class ChatTeacher:
    """Evolver, Responder, InstructionJudge and StepJudge over one chat model."""

    def __init__(
        self, chat: ChatModel, model: ModelSection, *, temperature: float, max_tokens: int, templates: Templates | None = None
    ) -> None:
        self.chat, self.model, self.temperature, self.max_tokens = chat, model, temperature, max_tokens
        self.templates = templates or read_operations()
        self.operations = {domain: tuple(known) for domain, known in self.templates.items()}
        self.name = chat.name

    def with_templates(self, templates: Templates) -> ChatTeacher:
        """The same model, asked by other templates."""
        return ChatTeacher(self.chat, self.model, temperature=self.temperature, max_tokens=self.max_tokens, templates=templates)

    def ask(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        temperature: float | None = None,
        max_tokens: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """An answer to each text, empty where there was none."""
        answers = self.chat.complete(
            [[{"role": "user", "content": text}] for text in texts],
            temperature=self.temperature if temperature is None else temperature,
            max_tokens=max_tokens or self.max_tokens,
            seed=seed,
            schema=schema,
        )
        return [answer or "" for answer in answers]

    def _answers(self, texts: Sequence[str], *, seed: int) -> list[Answer]:
        """An answer to each text, and how it ended."""
        asked: list[list[prompts.Message]] = [[{"role": "user", "content": text}] for text in texts]
        return self.chat.answers(asked, temperature=self.temperature, max_tokens=self.max_tokens, seed=seed)

    def evolve(self, parents: Sequence[Problem], operations: Sequence[str], *, round: int, seed: int) -> list[Problem | None]:
        texts = [
            self.templates[parent.domain][operation].replace("{question}", parent.question)
            for parent, operation in zip(parents, operations, strict=True)
        ]
        children: list[Problem | None] = []
        answers = self._answers(texts, seed=seed + 1000 * round)
        for parent, operation, answer in zip(parents, operations, answers, strict=True):
            question = _PREFIX.sub("", answer.text or "").strip()
            root = parent.lineage.root if parent.lineage else parent.id
            finished = answer.finish != "length"
            lineage = Lineage(parent=parent.id, root=root, operation=operation, round=round, teacher=self.name, finished=finished)
            children.append(
                Problem(id=problem_id(question), question=question, source=self.name, domain=parent.domain, lineage=lineage)
                if question
                else None
            )
        return children

    def respond(self, problems: Sequence[Problem], samples: int, *, seed: int) -> list[list[Solution]]:
        """Stepped answers to math; what is asked otherwise is answered once, whatever `samples` says: nothing tells its answers apart."""
        stepped = [problem for problem in problems if problem.domain == "math"]
        others = [problem for problem in problems if problem.domain != "math"]
        solutions = self._solve(stepped, samples, seed) | self._reply(others, seed)
        return [solutions[problem.id] for problem in problems]

    def _solve(self, problems: Sequence[Problem], samples: int, seed: int) -> dict[str, list[Solution]]:
        ask = prompts.RESPOND["math"].replace("{marker}", self.model.answer_marker)
        wanted = [(problem, sample) for problem in problems for sample in range(samples)]
        answers = self.ask([ask.replace("{question}", problem.question) for problem, _ in wanted], seed=seed)
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
        return solutions

    def _reply(self, problems: Sequence[Problem], seed: int) -> dict[str, list[Solution]]:
        """The whole text, and whether it came to its end."""
        texts = [prompts.RESPOND[problem.domain].replace("{question}", problem.question) for problem in problems]
        answers = self._answers(texts, seed=seed) if texts else []
        solutions = {}
        for problem, answer in zip(problems, answers, strict=True):
            solution = Solution(
                problem_id=problem.id,
                question=problem.question,
                steps=(),
                answer=None,
                text=answer.text or "",
                writer=self.name,
                temperature=self.temperature,
                finished={"stop": True, "length": False}.get(answer.finish),
            )
            solutions[problem.id] = [solution]
        return solutions

    def versions(self, problem: Problem, count: int, *, seed: int) -> list[Problem]:
        """The instruction itself and evolved versions of it, each by another operation."""
        known = self.operations[problem.domain]
        operations = [known[place % len(known)] for place in range(count - 1)]
        made = self.evolve([problem] * len(operations), operations, round=1, seed=seed)
        return list({one.question: one for one in [problem, *made] if one is not None}.values())

    def judge_instructions(self, problems: Sequence[Problem], *, seed: int) -> list[Quality | None]:
        """Ratings of each aspect. Where the model can be asked for its probabilities, the mean rating under them (G-Eval, arXiv
        2303.16634, section 3): a small judge that always writes the same number still ranks."""
        # One digit can say 0 to 9.
        asked: list[list[prompts.Message]] = [
            [{"role": "user", "content": prompts.judge_instruction(problem.question, best=9)}] for problem in problems
        ]
        means = [row for opening in prompts.JUDGE_OPENINGS if (row := self.chat.expected_digit(asked, opening)) is not None]
        if len(means) == len(prompts.JUDGE_OPENINGS):
            return [_quality([value / 9 for value in values]) for values in zip(*means, strict=True)]
        texts = [prompts.judge_instruction(problem.question) for problem in problems]
        answers = self.ask(texts, seed=seed, temperature=0.0, max_tokens=QUALITY_TOKENS, schema=QUALITY_SCHEMA)
        return [parse_quality(answer) for answer in answers]

    def judge_list(self, problems: Sequence[Problem], orders: Sequence[Sequence[int]], *, seed: int) -> list[list[Quality | None]]:
        """All of them in one question for each of `orders` (the place in `problems` of what stands first, second, ...).

        A row an order, in the order of `problems`; None where the answer does not score one.
        """
        texts = [prompts.judge_list([problems[place].question for place in order]) for order in orders]
        answers = self.ask(
            texts, seed=seed, temperature=0.0, max_tokens=QUALITY_TOKENS * (1 + len(problems)), schema=list_schema(len(problems))
        )
        rows: list[list[Quality | None]] = []
        for order, answer in zip(orders, answers, strict=True):
            found = dict(zip(order, parse_list(answer, len(order)), strict=True))
            rows.append([found.get(place) for place in range(len(problems))])
        return rows

    def judge_steps(self, problems: Sequence[Problem], solutions: Sequence[Sequence[str]], *, seed: int) -> list[list[float | None]]:
        texts = [
            prompts.JUDGE_STEPS.format(
                question=problem.question, steps="\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
            )
            for problem, steps in zip(problems, solutions, strict=True)
        ]
        answers = self.ask(texts, seed=seed, temperature=0.0, max_tokens=16)
        return [parse_first_error(answer, len(steps)) for answer, steps in zip(answers, solutions, strict=True)]

    def judge_same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the two texts of each pair ask for the same with the same difficulty: the rule of no information gain."""
        texts = [prompts.SAME_PROBLEM.format(first=first, second=second) for first, second in pairs]
        return [answer.lower().startswith("yes") for answer in self.ask(texts, seed=0, temperature=0.0, max_tokens=4)]


def parse_quality(text: str) -> Quality | None:
    """Numbers 0..10 behind the names of the aspects, as JSON or not; None where one of the three qualities is missing."""
    found = [re.search(rf"{name}\W{{1,6}}(\d+(?:\.\d+)?)", text, re.IGNORECASE) for name in ASPECTS]
    if any(match is None for match in found[: len(QUALITIES)]):
        return None
    return _quality([min(10.0, float(match[1])) / 10 for match in found if match is not None])


def parse_list(text: str, count: int) -> list[Quality | None]:
    """Scores of the versions 1 to `count` from objects, each behind its number or with it inside, whatever stands around them.

    None for a version that is not scored, or scored in two ways: nobody knows which of both is meant.
    """
    scored: dict[int, Quality | None] = {}
    for before, row in _SCORED.findall(text):
        number, quality = before or next(iter(_NUMBER.findall(row)), ""), parse_quality(row)
        if number and quality is not None:
            scored[int(number)] = quality if scored.get(int(number), quality) == quality else None
    return [scored.get(number) for number in range(1, count + 1)]


def _quality(scores: Sequence[float]) -> Quality:
    """From scores in the order of ASPECTS; difficulty, the last, may be missing."""
    definition, precision, integrity, *difficulty = scores
    return Quality(definition, precision, integrity, difficulty=difficulty[0] if difficulty else None)


def parse_first_error(text: str, steps: int) -> list[float | None]:
    """0 or no number above the steps: all right; k: right before step k, wrong there, not judged after. Nothing to read: not judged."""
    match = re.search(r"\d{1,4}", text)
    if match is None:
        return [None] * steps
    first = int(match[0])
    if first == 0 or first > steps:
        return [1.0] * steps
    return [1.0] * (first - 1) + [0.0] + [None] * (steps - first)
