"""Labels from judgements and samples: ranks from quality scores, step labels from a calculator and from Monte Carlo."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from reward_models.records import RankedItem
from rlef.answers import as_number, same_answer
from rlef.evolution.ranking import agreed_ranks
from rlef.records import Aspect, Problem
from rlef.teacher import ASPECTS, QUALITIES, Quality

# Possessive throughout: with plain quantifiers a run of 20 digits that no "=" follows takes 20 seconds, and each digit doubles it.
_EQUATION = re.compile(r"((?:[-+*/x×÷\s$()%]|\d[\d,]*+\.?+\d*+)++)=\s*\$?\s*([-+]?\d[\d,]*\.?\d*)")
_TOKEN = re.compile(r"\d[\d,]*\.?\d*|[-+*/()]")
_PART = re.compile(r"\d+|[A-Za-z]+|\s+|.", re.DOTALL)
# Words whose capital letter names nobody.
_STARTERS = frozenset(("How", "What", "Find", "The", "There", "Then", "If", "At", "By", "Each", "It", "Every", "In", "On", "A", "An"))
_LONGEST = 120  # characters of an equation


def ranked_items(
    problems: Sequence[Problem], orders: Sequence[Sequence[Quality | None]], aspects: Sequence[Aspect] = QUALITIES
) -> list[RankedItem]:
    """Items in order of rank, by the totals over `aspects`. `orders`: a row of qualities for each order in which the list was judged.

    An item that an order does not score is left out. Scores are means over the orders.
    """
    totals = [[None if quality is None else quality.total(aspects) for quality in row] for row in orders]
    judged = [place for place in range(len(problems)) if all(row[place] is not None for row in totals)]
    ranks = agreed_ranks([[total for place in judged if (total := row[place]) is not None] for row in totals])
    items = []
    for place, rank in zip(judged, ranks, strict=True):
        qualities = [quality for row in orders if (quality := row[place]) is not None]
        means = {aspect: mean for aspect in ASPECTS if (mean := _mean([quality.score(aspect) for quality in qualities])) is not None}
        items.append(
            RankedItem(
                text=problems[place].question,
                rank=rank,
                scores={aspect: mean for aspect, mean in means.items() if aspect in aspects},
                recorded={aspect: mean for aspect, mean in means.items() if aspect not in aspects} or None,
                kind=qualities[0].kind,
            )
        )
    return sorted(items, key=lambda item: item.rank)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
    return [_rate(row, gold, question) for row in [*answers, [final]]]


def _rate(answers: Sequence[str | None], gold: str, question: str) -> float:
    return sum(answer is not None and same_answer(answer, gold, question) for answer in answers) / max(1, len(answers))


def bisection(
    steps: Sequence[str],
    gold: str,
    completions: Callable[[Sequence[Sequence[str]]], list[list[str | None]]],
    final: str | None,
    question: str = "",
    threshold: float = 0.0,
) -> tuple[list[float | None], list[float | None]]:
    """The first step after which at most `threshold` of the completions reach the answer, by binary search (OmegaPRM, arXiv 2406.06592,
    section 3.2: there none does).

    `steps`: K >= 1; the other arguments as for `monte_carlo`, and `completions` is asked for one prefix at a time, ceil(log2(K)) times at
    most. Returns (labels, rates), K of each: labels are 1 before the first error, 0 at it, None after; rates lie in 0..1, None where none
    was measured. It assumes that a prefix with a wrong step never recovers: a right final answer makes every step right, at no completion.
    Where completers do recover, raise `threshold`: with 0, the more completions, the more errors are overlooked.
    """
    count = len(steps)
    rates: list[float | None] = [None] * (count - 1) + [_rate([final], gold, question)]
    if rates[-1]:
        return [1.0] * count, rates
    right, wrong = 0, count  # steps of the longest prefix known to be right, of the shortest known to be wrong
    while wrong - right > 1:
        middle = (right + wrong) // 2
        rate = rates[middle - 1] = _rate(completions([steps[:middle]])[0], gold, question)
        right, wrong = (middle, wrong) if rate > threshold else (right, middle)
    return [1.0] * (wrong - 1) + [0.0] + [None] * (count - wrong), rates


def hard_labels(rates: Sequence[float | None], threshold: float) -> list[float | None]:
    """1 where a rate is above `threshold`, else 0; what was not measured stays None."""
    return [None if rate is None else float(rate > threshold) for rate in rates]


def consensus_labels(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    """Labels 0 or 1 that both give alike, else None (consensus filtering of judge and Monte Carlo, arXiv 2501.07301, by step)."""
    return [label if label == second else None for label, second in zip(one, other, strict=True)]


def agreement(one: Sequence[Sequence[float | None]], other: Sequence[Sequence[float | None]]) -> float | None:
    """Share of alike labels among the steps that both label; None where there is no such step."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True) if None not in pair]
    return sum(label == second for label, second in pairs) / len(pairs) if pairs else None
