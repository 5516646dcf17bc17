"""Labels from judgements and samples: ranks from quality scores, step labels from a calculator and from Monte Carlo."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from reward_models.records import RankedItem
from rlef.answers import as_number, same_answer
from rlef.records import Problem
from rlef.teacher import Quality

# Possessive throughout: with plain quantifiers a run of 20 digits that no "=" follows takes 20 seconds, and each digit doubles it.
_EQUATION = re.compile(r"((?:[-+*/x×÷\s$()%]|\d[\d,]*+\.?+\d*+)++)=\s*\$?\s*([-+]?\d[\d,]*\.?\d*)")
_TOKEN = re.compile(r"\d[\d,]*\.?\d*|[-+*/()]")
_PART = re.compile(r"\d+|[A-Za-z]+|\s+|.", re.DOTALL)
# Words whose capital letter names nobody.
_STARTERS = frozenset(("How", "What", "Find", "The", "There", "Then", "If", "At", "By", "Each", "It", "Every", "In", "On", "A", "An"))
_LONGEST = 120  # characters of an equation


def ranked_items(problems: Sequence[Problem], qualities: Sequence[Quality | None]) -> list[RankedItem]:
    """Items in order of total quality, equal totals sharing a rank; unjudged ones are left out."""
    judged = sorted(
        ((problem, quality) for problem, quality in zip(problems, qualities, strict=True) if quality is not None),
        key=lambda pair: -pair[1].total,
    )
    totals = sorted({quality.total for _, quality in judged}, reverse=True)
    return [
        RankedItem(
            text=problem.question,
            rank=totals.index(quality.total),
            scores={"definition": quality.definition, "precision": quality.precision, "integrity": quality.integrity},
            kind=quality.kind,
        )
        for problem, quality in judged
    ]


def check_equations(step: str) -> float | None:
    """1 where every equation of a step is arithmetically right (to a cent), 0 where one is wrong, None where there is none to check."""
    verdicts = []
    for left, right in _EQUATION.findall(step[:2000]):
        if len(left) > _LONGEST or not any(sign in left for sign in "+-*/x×÷"):
            continue
        value, said = _calculate(left), as_number(right)
        if value is not None and said is not None:
            verdicts.append(abs(value - said) <= Fraction(1, 100))
    return None if not verdicts else float(all(verdicts))


def _calculate(expression: str) -> Fraction | None:
    """Exact value of + - * / and brackets over plain numbers; None where it does not parse. No eval: the text is a model's."""
    text = expression.replace("×", "*").replace("x", "*").replace("÷", "/").replace("$", "").replace(",", "").replace("%", "")
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != "".join(text.split()) or len(tokens) > 40:
        return None
    position = 0

    def atom() -> Fraction:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            value = total()
            if tokens[position] != ")":
                raise ValueError
            position += 1
            return value
        if token == "-":
            return -atom()
        return Fraction(token.rstrip("."))

    def product() -> Fraction:
        nonlocal position
        value = atom()
        while position < len(tokens) and tokens[position] in "*/":
            sign, position = tokens[position], position + 1
            value = value * atom() if sign == "*" else value / atom()
        return value

    def total() -> Fraction:
        nonlocal position
        value = product()
        while position < len(tokens) and tokens[position] in "+-":
            sign, position = tokens[position], position + 1
            value = value + product() if sign == "+" else value - product()
        return value

    try:
        value = total()
        return value if position == len(tokens) else None
    except (ValueError, ZeroDivisionError, IndexError):
        return None


def perturbed(step: str, before: str, rng: random.Random) -> str | None:
    """`step` with one number, sign or name changed: into another of `before` (the problem and its earlier steps), or a number near it.

    None where there is nothing to change. Whether the result is wrong is for a judge to say.
    """
    parts = _PART.findall(step)
    choices: list[tuple[int, list[str]]] = []
    for place, part in enumerate(parts):
        if part.isdecimal() and len(part) < 10:
            near = [str(int(part) + change) for change in (-3, -2, -1, 1, 2, 3) if int(part) + change > 0]
            others = near + [found for found in re.findall(r"\d+", before) if len(found) < 10]
        elif part in ("+", "-", "*", "/"):
            others = ["+", "-", "*", "/"]
        else:
            others = [word for word in re.findall(r"\b[A-Z][a-z]+", before) if word not in _STARTERS] if part.istitle() else []
        others = [other for other in others if other != part]
        if others:
            choices.append((place, others))
    if not choices:
        return None
    place, others = rng.choice(choices)
    parts[place] = rng.choice(others)
    return "".join(parts)


def calculator_labels(steps: Sequence[str], success: Sequence[float | None]) -> list[float | None]:
    """A wrong equation is 0; any other step has the success rate of completions from it (Math-Shepherd, arXiv 2312.08935)."""
    return [0.0 if check_equations(step) == 0.0 else rate for step, rate in zip(steps, success, strict=True)]


def monte_carlo(
    steps: Sequence[str],
    gold: str,
    completions: Callable[[Sequence[Sequence[str]]], list[list[str | None]]],
    final: str | None,
    question: str = "",
) -> list[float | None]:
    """Success rate of completions from the prefix that ends with each step. The last step's own answer needs no completion.

    `completions`: prefixes -> answers of their completions. It estimates the completer's success, not the step's truth.
    """
    prefixes = [steps[: place + 1] for place in range(len(steps) - 1)]
    answers = completions(prefixes) if prefixes else []
    rates = [sum(answer is not None and same_answer(answer, gold, question) for answer in row) / max(1, len(row)) for row in answers]
    return [*rates, float(final is not None and same_answer(final, gold, question))]
