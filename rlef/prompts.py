"""Text in and out of chat models: the policy's own format, and what a teacher is asked apart from evolution, as data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlef.answers import extract_answer
from rlef.config import ModelSection
from rlef.records import Aspect, Domain

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


def filled(prompt: str, **parts: str) -> str:
    """Each {name} of `parts` replaced, once: what is put in is not looked at again, and other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), prompt)


# --------------------------------------------------------------------------------------------- the teacher

# Words that only stand in a rewrite when a prompt leaked into it: the headings of evolution/operations.yaml, and what models know of others.
LEAKED_WORDS = (
    "new problem:", "new instruction:", "new task:",
    "rewritten prompt", "given prompt", "#the given", "#rewritten", "created prompt", "original problem",
)  # fmt: skip

RESPOND: dict[Domain, str] = {
    "math": "Solve the problem step by step. Write one short step a line, with its calculation. "
    "End with a line '{marker} ' followed by the final number alone.\n\nProblem: {question}",
    "general": "Do what the instruction below asks. Answer completely and correctly, and write nothing but your answer.\n\nInstruction: {question}",
    "code": "Write a program for the task below. Give the whole program in one code block, then explain in two or three sentences how it works."
    "\n\nTask: {question}",
}
# What each aspect asks, and what the lowest score, the middle and the highest mean.
RUBRIC: dict[Aspect, tuple[str, str, str, str]] = {
    "definition": (
        "Is it clear what is to be done?",
        "nothing is asked, or nobody could say what",
        "the aim can be guessed, but more than one task fits the words",
        "one definite task, and nobody would have to ask what is meant",
    ),
    "precision": (
        "Has every statement one exact meaning?",
        "statements contradict each other, or a word or reference can be read in ways that change the answer",
        "what matters is exact, some words or references are loose",
        "every quantity, name and condition has one meaning alone",
    ),
    "integrity": (
        "Is everything there that an answer needs?",
        "something is missing without which no answer can be found",
        "an answer needs an assumption that the text does not state",
        "all that is needed is given, and all that is given fits together",
    ),
    "difficulty": (
        "How hard is it to answer?",
        "it is answered at a glance",
        "it takes a few thoughts, each built on the one before",
        "it takes many such thoughts, or knowledge that few people have",
    ),
}
_JSON_FORM = "{" + ", ".join(f'"{aspect}": n' for aspect in RUBRIC) + "}"
# How an answer to `judge_instruction` begins, up to each number. The earlier numbers are set, so that the later ones do not hang on a drawn one.
JUDGE_OPENINGS = tuple(
    "{" + "".join(f'"{earlier}": 5, ' for earlier in list(RUBRIC)[:place]) + f'"{aspect}": ' for place, aspect in enumerate(RUBRIC)
)


def rubric(best: int) -> str:
    """A line an aspect, for scores from 0 to `best`."""
    rows = RUBRIC.items()
    return "\n".join(f"{aspect}: {asks} 0: {low}; {best // 2}: {middle}; {best}: {high}." for aspect, (asks, low, middle, high) in rows)


def judge_instruction(question: str, best: int = 10) -> str:
    """One instruction, to be scored by itself."""
    return (
        f"Judge the instruction below. Give each of these aspects a whole number from 0 to {best}:\n{rubric(best)}\n"
        f"Answer as JSON: {_JSON_FORM}\n\nInstruction: {question}\n\nJSON:"
    )


def judge_list(questions: Sequence[str], best: int = 10) -> str:
    """Versions of one instruction, numbered from 1 in the order given, to be scored side by side."""
    versions = "\n\n".join(f"Version {number}:\n{question}" for number, question in enumerate(questions, 1))
    return (
        f"Below are {len(questions)} versions of an instruction, in no particular order. Compare them, and give each version for each of these aspects "
        f"a whole number from 0 to {best}; versions that are equally good get equal numbers.\n{rubric(best)}\n"
        f'Answer as JSON, each version under its number: {{"1": {_JSON_FORM}, "2": ...}}\n\n{versions}\n\nJSON:'
    )


JUDGE_STEPS = (
    "Here is a problem and a solution with numbered steps. Find the first wrong step. Answer with its number alone, or 0 if all are right.\n\n"
    "Problem: {question}\n\n{steps}\n\nFirst wrong step:"
)
SAME_PROBLEM = "Do these two problems ask for the same thing with the same difficulty? Answer yes or no.\n\nFirst: {first}\n\nSecond: {second}\n\nAnswer:"
METHOD_ANALYSE = (
    "With the template below a language model makes {purpose}; {question} stands for the given {noun}. Some of its rewrites failed.\n\n"
    "Template:\n{template}\n\nRewrites:\n\n{trials}\n"
    "Explain in a few sentences why rewrites failed, and what the template should demand so that they would not. "
    "Speak of every {noun} alike and quote none of them."
)
METHOD_REWRITE = (
    "Below are a template with which a language model makes {purpose} ({operation}), and advice on it; {question} stands for the given {noun}. "
    "Write a better template that follows the advice. It must still make {purpose}, hold {question} exactly once, and name no particular {noun}. "
    "Write nothing but the template.\n\nTemplate:\n{template}\n\nAdvice: {analysis}\n\nBetter template:"
)
