"""From a list that was judged in several orders to its ranks, and how far the orders agree: pure functions of scores."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class Judged:
    """A list of n items as it was judged in one order."""

    order: tuple[int, ...]  # (n,): the item that stands at each position
    totals: tuple[float | None, ...]  # (n,): the score of each item, more is better; None: not scored


def shown_orders(count: int, orders: int, rng: random.Random) -> list[tuple[int, ...]]:
    """In which orders `count` items are shown: shuffled, the same reversed, then shuffled anew.

    The first is shuffled too: where the seed instruction always stood first, its quality would look like a bias for that position.
    """
    made: list[tuple[int, ...]] = []
    for number in range(orders):
        made.append(made[0][::-1] if number == 1 else tuple(rng.sample(range(count), count)))
    return made


def agreed_ranks(orders: Sequence[Sequence[float]]) -> list[int]:
    """Ranks of n items (0 best, no gaps, equal is a tie) from rows of n scores, one row an order.

    Two items have different ranks only if every order scores the one above the other. "Tied with" must be transitive, so where a is tied
    with b and b with c, a and c are tied even if all orders agree on them. Of all rankings that keep to this, it is the one with the most
    ranks: a rank ends exactly where every order scores all items before it above all items after it. One order gives its own ranking.
    """
    count = len(orders[0])
    places = sorted(range(count), key=lambda item: -orders[0][item])
    ranks, rank = [0] * count, 0
    for cut in range(1, count):
        above, below = places[:cut], places[cut:]
        rank += all(min(row[item] for item in above) > max(row[item] for item in below) for row in orders)
        ranks[places[cut]] = rank
    return ranks


def inversions(one: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    """Pairs of items that two rows of scores put in opposite orders, and pairs that both put in an order (neither ties them)."""
    signs = _signs(one, other)
    return sum(a * b < 0 for a, b in signs), sum(a * b != 0 for a, b in signs)


def kendall_tau_b(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b (Kendall 1945): pairs in the same order minus pairs in opposite orders, over the geometric mean of the numbers of
    pairs that either row does not tie. In -1..1; None where a row ties all items.
    """
    signs = _signs(one, other)
    untied = sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs)
    return sum(a * b for a, b in signs) / math.sqrt(untied) if untied else None


def _signs(one: Sequence[float], other: Sequence[float]) -> list[tuple[int, int]]:
    """For each pair of items how each row puts it: 1, -1, or 0 for a tie."""
    pairs = combinations(range(len(one)), 2)
    return [((one[i] > one[j]) - (one[i] < one[j]), (other[i] > other[j]) - (other[i] < other[j])) for i, j in pairs]


def order_statistics(lists: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """How far the orders of lists agree; None for what has no pair.

    kendall_tau_b: mean over lists and pairs of their orders. flip_rate: of the pairs of items that two orders both put in an order, the
    share that turns round between them. position_means: mean total at each position, from the first; with two orders, each the reverse of
    the other, they read the same from both ends unless position matters. broken_orders: orders in which no item is scored.
    """
    taus: list[float] = []
    flipped = ordered = 0
    at: dict[int, list[float]] = defaultdict(list)
    for judged in lists:
        for one, other in combinations(judged, 2):
            both = [(a, b) for a, b in zip(one.totals, other.totals, strict=True) if a is not None and b is not None]
            rows = [a for a, _ in both], [b for _, b in both]
            turned, comparable = inversions(*rows)
            flipped, ordered = flipped + turned, ordered + comparable
            tau = kendall_tau_b(*rows)
            taus += [tau] if tau is not None else []
        for row in judged:
            for position, item in enumerate(row.order):
                total = row.totals[item]
                at[position] += [total] if total is not None else []
    return {
        "kendall_tau_b": sum(taus) / len(taus) if taus else None,
        "flip_rate": flipped / ordered if ordered else None,
        "position_means": [sum(at[position]) / len(at[position]) if at[position] else None for position in sorted(at)],
        "broken_orders": sum(all(total is None for total in row.totals) for judged in lists for row in judged),
    }
