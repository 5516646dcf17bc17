"""Ranks from several orders and how far these agree: by value, by brute force over small lists, and what a judge's answer is read as."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest

from rlef import prompts
from rlef.config import ModelSection, RandomInit
from rlef.evolution.chat import QUALITY_SCHEMA, ChatTeacher, list_schema, parse_list, parse_quality
from rlef.evolution.labels import ranked_items
from rlef.evolution.ranking import Judged, agreed_ranks, inversions, kendall_tau_b, order_statistics, shown_orders
from rlef.records import Problem, problem_id
from rlef.rollout.remote import ChatModel
from rlef.teacher import Quality


@pytest.mark.parametrize(
    "orders,ranks",
    [
        ([[9, 5, 7]], [0, 2, 1]),  # one order is its own ranking
        ([[9, 5, 9]], [0, 1, 0]),
        ([[9, 5, 7], [3, 1, 2]], [0, 2, 1]),  # scales may differ, orders agree
        ([[9, 7, 5], [7, 9, 5]], [0, 0, 1]),  # one pair is inverted
        ([[9, 7, 5], [9, 7, 7]], [0, 1, 1]),  # an order that ties a pair does not agree with one that orders it
        ([[9, 7, 5], [5, 7, 9]], [0, 0, 0]),  # reversed: nothing is left
        ([[9, 7, 5], [7, 5, 9]], [0, 0, 0]),  # both agree that 0 is above 1, but 2 is tied with either
        ([[9, 8, 2, 1], [8, 9, 1, 2]], [0, 0, 1, 1]),
        ([[9, 8, 7], [9, 8, 7], [8, 9, 7]], [0, 0, 1]),  # two against one is a disagreement
        ([[4]], [0]),
        ([[], []], []),
    ],
)
def test_ranks_by_value(orders, ranks):
    assert agreed_ranks(orders) == ranks


def unanimous(orders, i, j):
    return all(row[i] > row[j] for row in orders)


def finest(orders, count):
    """Of all rankings in which different ranks mean that every order agrees, the one that orders the most pairs."""
    allowed = []
    for ranks in itertools.product(range(count), repeat=count):
        if set(ranks) == set(range(max(ranks) + 1)) and all(
            ranks[i] >= ranks[j] or unanimous(orders, i, j) for i in range(count) for j in range(count)
        ):
            allowed.append(list(ranks))
    most = max(len(set(ranks)) for ranks in allowed)
    (best,) = [ranks for ranks in allowed if len(set(ranks)) == most]
    return best


def test_ranks_are_the_finest_that_no_order_contradicts():
    rng = random.Random(0)
    for trial in range(300):
        count, number = rng.randint(1, 4), rng.randint(1, 3)
        orders = [[rng.randint(0, 4) for _ in range(count)] for _ in range(number)]
        if trial % 3 == 0:  # orders that agree: the exact ranking of the first
            orders = [[3 * value + shift for value in orders[0]] for shift in range(number)]
        ranks = agreed_ranks(orders)
        assert ranks == finest(orders, count) == agreed_ranks(orders) == agreed_ranks(orders[::-1])
        for i, j in itertools.permutations(range(count), 2):
            if any(row[i] > row[j] for row in orders) and any(row[i] < row[j] for row in orders):
                assert ranks[i] == ranks[j]
        if trial % 3 == 0:
            assert ranks == [sorted(set(orders[0]), reverse=True).index(value) for value in orders[0]]
        order = rng.sample(range(count), count)
        assert agreed_ranks([[row[place] for place in order] for row in orders]) == [ranks[place] for place in order]


def test_tau_b_and_inversions_against_brute_force():
    rng = random.Random(1)
    for _ in range(300):
        count = rng.randint(1, 6)
        one, other = ([rng.randint(0, 3) for _ in range(count)] for _ in range(2))
        same = turned = left = right = 0
        for i in range(count):
            for j in range(i):
                a, b = one[i] - one[j], other[i] - other[j]
                same, turned = same + (a * b > 0), turned + (a * b < 0)
                left, right = left + (a == 0 and b != 0), right + (a != 0 and b == 0)
        assert inversions(one, other) == (turned, same + turned)
        below = math.sqrt((same + turned + left) * (same + turned + right))
        assert kendall_tau_b(one, other) == (pytest.approx((same - turned) / below) if below else None)
    assert kendall_tau_b([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # Scipy's documentation: kendalltau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]).
    assert kendall_tau_b([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045207910316)


def test_orders_are_shuffled_and_the_second_is_the_first_reversed():
    orders = shown_orders(6, 4, random.Random(3))
    assert orders == shown_orders(6, 4, random.Random(3)) != shown_orders(6, 4, random.Random(4))
    assert orders[1] == orders[0][::-1] and all(sorted(order) == list(range(6)) for order in orders) and len(set(orders)) == 4
    assert shown_orders(6, 0, random.Random(3)) == [] and shown_orders(6, 2, random.Random(3)) == orders[:2]


def test_statistics_by_value():
    fair = [Judged((0, 1, 2), (3.0, 2.0, 1.0)), Judged((2, 1, 0), (3.0, 1.0, 1.0))]  # of three pairs one is tied in one order
    biased = [Judged((0, 1), (2.0, 1.0)), Judged((1, 0), (1.0, 2.0))]  # what stands first gets 2
    lost = [Judged((0, 1), (None, None)), Judged((1, 0), (None, 2.0))]
    found = order_statistics([fair, biased, lost])
    assert found["kendall_tau_b"] == pytest.approx((2 / math.sqrt(3 * 2) - 1) / 2) and found["flip_rate"] == pytest.approx(1 / 3)
    assert found["broken_orders"] == 1 and found["position_means"] == [(3 + 1 + 2 + 2 + 2) / 5, (2 + 1 + 1 + 1) / 4, (1 + 3) / 2]
    assert order_statistics([]) == {"kendall_tau_b": None, "flip_rate": None, "position_means": [], "broken_orders": 0}


# ------------------------------------------------------------------------------------------ the chat judge


def problem(text):
    return Problem(id=problem_id(text), question=text)


def scores(*values):
    return dict(zip(prompts.RUBRIC, values, strict=False))


def quality(*values):
    definition, precision, integrity, *difficulty = (value / 10 for value in values)
    return Quality(definition, precision, integrity, difficulty=difficulty[0] if difficulty else None)


@pytest.mark.parametrize(
    "text,read",
    [
        (json.dumps({"1": scores(9, 8, 7, 6), "2": scores(1, 2, 3, 4)}), [quality(9, 8, 7, 6), quality(1, 2, 3, 4)]),
        (
            "Sure!\n```json\n" + json.dumps({"2": scores(1, 2, 3), "1": scores(9, 8, 7)}, indent=1) + "\n```",
            [quality(9, 8, 7), quality(1, 2, 3)],
        ),
        (json.dumps({"items": [{"version": 2} | scores(1, 2, 3), scores(9, 8, 7) | {"version": 1}]}), [quality(9, 8, 7), quality(1, 2, 3)]),
        ('{"1": {"definition": 9, "precision": 8, "integrity": 7}, "2": {"definition": 1, "pre', [quality(9, 8, 7), None]),  # cut off
        ("{1: {'definition': 9, 'precision': 8, 'integrity': 7,}}", [quality(9, 8, 7), None]),  # no JSON
        (json.dumps([{"item": 1} | scores(9, 8, 7), {"item": 1} | scores(9, 8, 6)]), [None, None]),  # scored in two ways
        (json.dumps({"1": scores(9, 8), "3": scores(1, 2, 3)}), [None, None]),  # an aspect is missing; nobody asked for a third
        ("I prefer the first one.", [None, None]),
        ("", [None, None]),
        ('{"1":' + "{" * 20_000, [None, None]),
    ],
)
def test_a_list_is_read_from_whatever_stands_around_it_and_nothing_is_guessed(text, read):
    assert parse_list(text, 2) == read


def test_the_schema_has_each_number_once_and_both_ways_of_judging_show_the_whole_rubric():
    schema = list_schema(3)
    assert schema["required"] == ["1", "2", "3"] == list(schema["properties"]) and schema["properties"]["2"] == QUALITY_SCHEMA
    assert QUALITY_SCHEMA["required"] == list(prompts.RUBRIC) == ["definition", "precision", "integrity", "difficulty"]
    for best, middle in ((10, 5), (9, 4)):
        for text in (prompts.judge_instruction("Why {this}?", best), prompts.judge_list(["Why {this}?", "b"], best)):
            assert "Why {this}?" in text and f"from 0 to {best}" in text
            for aspect, (asks, low, half, high) in prompts.RUBRIC.items():
                assert f"{aspect}: {asks} 0: {low}; {middle}: {half}; {best}: {high}." in text
    assert prompts.JUDGE_OPENINGS[0] == '{"definition": ' and prompts.JUDGE_OPENINGS[3].endswith('"integrity": 5, "difficulty": ')


class Judge(ChatModel):
    """Scores the versions that it is shown by `score(position from 0, text)`; `digits` are its expected digits, None for an endpoint."""

    name = "judge"

    def __init__(self, score=None, digits=None):
        self.score, self.digits, self.seen = score, digits, []

    def complete(self, conversations, *, temperature, max_tokens, seed, schema=None):
        assert temperature == 0.0
        self.seen += [messages[-1]["content"] for messages in conversations]
        return [json.dumps(self._answer(text, schema)) for text in self.seen[-len(conversations) :]]

    def _answer(self, text, schema):
        shown = [part.split(":\n", 1)[1] for part in text.removesuffix("\n\nJSON:").split("\n\nVersion ")[1:]]
        assert schema == list_schema(len(shown))
        return {str(place + 1): scores(*self.score(place, version)) for place, version in enumerate(shown)}

    def expected_digit(self, conversations, opening):
        return None if self.digits is None else [self.digits[prompts.JUDGE_OPENINGS.index(opening)]] * len(conversations)


def teacher(chat):
    return ChatTeacher(chat, ModelSection(random=RandomInit()), temperature=0.7, max_tokens=64)


VERSIONS = [problem(f"{text}\n\nIn full: {text * 3}") for text in "abcd"]


def test_a_fair_judge_is_read_alike_in_every_order():
    good = {version.question: (9 - 2 * place, 5, 5, place) for place, version in enumerate(VERSIONS)}
    chat = Judge(lambda place, text: good[text])
    orders = shown_orders(4, 3, random.Random(0))
    rows = teacher(chat).judge_list(VERSIONS, orders, seed=0)
    assert rows == [[quality(*good[version.question]) for version in VERSIONS]] * 3 and len(set(chat.seen)) == 3
    items = ranked_items(VERSIONS[::-1], [row[::-1] for row in rows])
    assert [(item.text, item.rank) for item in items] == [(version.question, place) for place, version in enumerate(VERSIONS)]
    assert items[1].scores == pytest.approx({"definition": 0.7, "precision": 0.5, "integrity": 0.5}) and items[1].recorded == pytest.approx(
        {"difficulty": 0.1}
    )
    by_difficulty = ranked_items(VERSIONS, rows, ["difficulty"])
    assert [item.text for item in by_difficulty] == [version.question for version in VERSIONS[::-1]]
    assert by_difficulty[0].scores == {"difficulty": pytest.approx(0.3)} and by_difficulty[0].recorded.keys() == set(prompts.RUBRIC) - {
        "difficulty"
    }


@pytest.mark.parametrize("score", [lambda place, text: (9 - place, 5, 5, 5), lambda place, text: (10 if place == 0 else 5, 5, 5, 5)])
def test_a_judge_that_prefers_what_stands_first_leaves_only_ties_and_is_told_on(score):
    orders = shown_orders(4, 2, random.Random(0))
    rows = teacher(Judge(score)).judge_list(VERSIONS, orders, seed=0)
    judged = [Judged(order, tuple(one.total() for one in row)) for order, row in zip(orders, rows, strict=True)]
    found = order_statistics([judged])
    assert found["flip_rate"] == 1.0 and found["kendall_tau_b"] < 0 and found["position_means"][0] > found["position_means"][-1]
    assert {item.rank for item in ranked_items(VERSIONS, rows)} == {0}


def test_what_an_order_leaves_out_is_not_ranked_and_scores_are_means():
    first = [quality(9, 9, 9, 1), None, quality(1, 1, 1, 2), quality(5, 5, 5)]
    second = [quality(8, 9, 9, 4), quality(5, 5, 5, 5), quality(2, 1, 1), quality(5, 5, 5)]
    items = ranked_items(VERSIONS, [first, second])
    assert [(item.text[0], item.rank) for item in items] == [("a", 0), ("d", 1), ("c", 2)]
    assert items[0].scores["definition"] == pytest.approx(0.85) and items[0].recorded == {"difficulty": 0.25}
    assert items[1].recorded is None and items[2].recorded == {"difficulty": 0.2}
    assert ranked_items(VERSIONS, [first, [None] * 4]) == []


def test_equal_sums_are_ties_in_whatever_order_they_are_added():
    assert 0.8 + 1.0 + 0.3 != 0.3 + 1.0 + 0.8 or 0.1 + 0.7 + 0.2 != 0.7 + 0.2 + 0.1  # as floats add
    rows = [[quality(8, 10, 3), quality(3, 10, 8), quality(1, 7, 2), quality(7, 2, 1)]]
    assert [item.rank for item in ranked_items(VERSIONS, rows)] == [0, 0, 1, 1]


def test_alone_a_judge_is_read_by_its_expected_digits_where_it_has_any():
    (one,) = teacher(Judge(digits=[9.0, 4.5, 0.0, 1.8])).judge_instructions([problem("q")], seed=0)
    assert one == Quality(1.0, 0.5, 0.0, difficulty=0.2)
    assert parse_quality('{"definition": 8, "precision": 10, "integrity": 3, "difficulty": 4}') == quality(8, 10, 3, 4)
