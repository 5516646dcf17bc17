"""Labels from judgements and samples: ranks from quality scores, step labels from Monte Carlo, bisection and arithmetic."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from reward_models.labels import first_error_labels
from reward_models.records import RankedItem
from rlef.answers import same_answer
from rlef.evolution.ranking import agreed_ranks
from rlef.records import Aspect, Problem
from rlef.teacher import ASPECTS, QUALITIES, Quality

_SIGNS = ("+", "-", "*", "/")
_PART = re.compile(r"\d+|[A-Za-z]+|\s+|.", re.DOTALL)
# Words whose capital letter names nobody.
_STARTERS = frozenset(("How", "What", "Find", "The", "There", "Then", "If", "At", "By", "Each", "It", "Every", "In", "On", "A", "An"))


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


def perturbed(step: str, before: str, rng: random.Random) -> str | None:
    """`step` with one number, sign or name changed: into another of `before` (the problem and its earlier steps), or a number near it.

    None where there is nothing to change. Whether the result is wrong is for a judge to say.
    """
    parts = _PART.findall(step)
    names = [word for word in re.findall(r"\b[A-Z][a-z]+", before) if word not in _STARTERS]
    distinct = set(names)

    def is_number(part: str) -> bool:
        return part.isdecimal() and len(part) < 10

    def changes(part: str) -> bool:
        return is_number(part) or part in _SIGNS or (part.istitle() and len(distinct) > (part in distinct))

    places = [place for place, part in enumerate(parts) if changes(part)]
    if not places:
        return None
    place = rng.choice(places)
    part = parts[place]
    if is_number(part):
        near = [str(int(part) + change) for change in (-3, -2, -1, 1, 2, 3) if int(part) + change > 0]
        others = near + [found for found in re.findall(r"\d+", before) if len(found) < 10]
    else:
        others = list(_SIGNS) if part in _SIGNS else names
    parts[place] = rng.choice([other for other in others if other != part])
    return "".join(parts)


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
    right, wrong = 0, count  # steps of the longest prefix known to be right, of the shortest known to be wrong
    while wrong - right > 1 and not rates[-1]:
        middle = (right + wrong) // 2
        rate = rates[middle - 1] = _rate(completions([steps[:middle]])[0], gold, question)
        right, wrong = (middle, wrong) if rate > threshold else (right, middle)
    return first_error_labels(rates, threshold), rates


def exact_labels(equations: Sequence[float | None], correct: bool | None) -> list[float | None]:
    """Labels from arithmetic and the final answer alone, with no completion: the first wrong equation is 0 and no other step is judged;
    where there is none and the answer is right, all steps are 1; otherwise nothing is known.

    `equations`: what `check_equations` says of each step. A misreading with right arithmetic is never 0, and counts as right where the
    final answer happens to be.
    """
    wrong = [place for place, equation in enumerate(equations) if equation == 0.0]
    if not wrong:
        return [1.0 if correct else None] * len(equations)
    return [0.0 if place == wrong[0] else None for place in range(len(equations))]


def agreement(one: Sequence[Sequence[float | None]], other: Sequence[Sequence[float | None]]) -> float | None:
    """Share of alike labels among the steps that both label; None where there is no such step."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True) if None not in pair]
    return sum(label == second for label, second in pairs) / len(pairs) if pairs else None


def held_out_count(count: int, fraction: float) -> int:
    """How many of `count` are kept for evaluating: one at least, and never all."""
    return min(count - 1, max(1, round(count * fraction)))
