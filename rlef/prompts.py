"""Text in and out of chat models: the policy's own format, and what a teacher is asked apart from evolution, as data."""

from __future__ import annotations

from collections.abc import Sequence

from rlef.answers import extract_answer
from rlef.config import ModelSection

Message = dict[str, str]


def question_messages(question: str, model: ModelSection) -> list[Message]:
    """The policy's turn: the system prompt, where there is one, and the question."""
    system = [{"role": "system", "content": model.system_prompt}] if model.system_prompt else []
    return [*system, {"role": "user", "content": model.prompt_template.replace("{question}", question)}]


def answer_text(steps: Sequence[str], answer: str, model: ModelSection) -> str:
    """A stepped answer as the policy should write it."""
    return model.step_delimiter.join([*steps, f"{model.answer_marker} {answer}"])


def split_answer(text: str, model: ModelSection) -> tuple[list[str], str | None]:
    """Steps, the answer line included, and the extracted answer."""
    steps = [part.strip() for part in text.split(model.step_delimiter) if part.strip()]
    return steps, extract_answer(text, model.answer_marker)


# --------------------------------------------------------------------------------------------- the teacher

# Words that only stand in a rewrite when a prompt leaked into it: the headings of evolution/operations.yaml, and what models know of others.
LEAKED_WORDS = (
    "new problem:", "new instruction:", "new task:",
    "rewritten prompt", "given prompt", "#the given", "#rewritten", "created prompt", "original problem",
)  # fmt: skip

RESPOND = (
    "Solve the problem step by step. Write one short step a line, with its calculation. "
    "End with a line '{marker} ' followed by the final number alone.\n\nProblem: {question}"
)
JUDGE_INSTRUCTION = (
    "Judge the quality of the problem below from 0 (worst) to 10 (best). definition: is it clear what is asked? precision: is every statement exact "
    'and free of ambiguity? integrity: is everything given that is needed? Answer as JSON: {{"definition": n, "precision": n, "integrity": n}}\n\n'
    "Problem: {question}\n\nJSON:"
)
# How an answer to it begins, up to each number. The earlier numbers are set, so that the later ones do not hang on a drawn one.
JUDGE_OPENINGS = ('{"definition": ', '{"definition": 5, "precision": ', '{"definition": 5, "precision": 5, "integrity": ')
JUDGE_STEPS = (
    "Here is a problem and a solution with numbered steps. Find the first wrong step. Answer with its number alone, or 0 if all are right.\n\n"
    "Problem: {question}\n\n{steps}\n\nFirst wrong step:"
)
SAME_PROBLEM = "Do these two problems ask for the same thing with the same difficulty? Answer yes or no.\n\nFirst: {first}\n\nSecond: {second}\n\nAnswer:"
