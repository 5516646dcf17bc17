"""Elimination, decontamination, labels and the chat teacher, with a scripted model where a model is needed."""

from __future__ import annotations

import inspect
import math
import random
import re
import time

import pytest

from rlef.config import ModelSection, RandomInit
from rlef.evolution.chat import ChatTeacher, parse_first_error, parse_quality
from rlef.evolution.decontamination import Duplicates
from rlef.evolution.elimination import eliminated_by
from rlef.evolution.labels import agreement, bisection, exact_labels, monte_carlo, perturbed, ranked_items
from rlef.records import Problem, Solution, problem_id
from rlef.rollout.remote import ChatModel
from rlef.stages.respond import choose_solution
from rlef.teacher import Quality

PARENT = "Ann has 12 apples. Ben has 5 more apples than Ann. How many apples does Ben have?"


def problem(text, **fields):
    return Problem(id=problem_id(text), question=text, **fields)


@pytest.mark.parametrize(
    "child,rule",
    [
        (PARENT, "no_information_gain"),
        (PARENT.upper().replace(".", " !"), "no_information_gain"),
        ("Sorry, I can not do that.", "refusal"),
        ("#Rewritten Prompt#: Ann has 9 apples.", "leaked_prompt"),
        ("and of the, to it?", "stop_words"),
        ("...!?", "stop_words"),
        ("", "stop_words"),
        (PARENT.replace("12", "13"), None),
        ("Ann is sorry. " + "She sells many apples every day. " * 20, None),
        ("Ann has 12 apples.", None),  # no question is not a rule: flawed prompts must reach RL
    ],
)
def test_the_four_rules(child, rule):
    assert eliminated_by(PARENT, child) == rule


def test_rules_see_texts_alone_and_a_judge_may_be_heard():
    parameters = inspect.signature(eliminated_by).parameters
    assert {name: parameter.annotation for name, parameter in parameters.items()} == {
        "parent": "str",
        "child": "str",
        "judged_same": "bool",
        "require_question": "bool",
        "template": "str",
    }
    assert eliminated_by(PARENT, "Ben has 17 apples?", judged_same=True) == "no_information_gain"
    assert teacher("Yes.", "no").judge_same([("a", "b"), ("a", "c")]) == [True, False]


@pytest.mark.parametrize(
    "child,asks",
    [
        ("Ann has 12 apples.", False),
        ("Ann has 12 apples, which she shares with Ben. She gives him 5.", True),  # the price of texts alone: a relative "which"
        ("Ann has 12 apples. Find how many remain after she ate 5.", True),
        ("Given x + 5 = 12, find x.", True),
        ("Ann has 12 apples. How many has Ben", True),
        ("They found 12 apples and a list of what to buy.", False),
    ],
)
def test_a_math_problem_that_asks_nothing_is_dropped_where_the_config_says_so(child, asks):
    assert eliminated_by(PARENT, child, require_question=True) == (None if asks else "no_question")
    assert eliminated_by(PARENT, child) is None


def duplicates(seen, text):
    found = seen.check_and_add(problem(text))
    return found and found[0]


def test_duplicates():
    seen = Duplicates(0.8)
    long = "Ann has 12 apples and she gives 3 of them to Ben who then shares them with all his many friends at the big school"
    assert seen.check_and_add(problem(long)) is None
    assert seen.check_and_add(problem(long.upper() + "!")) == ("exact_duplicate", problem_id(long))
    assert seen.check_and_add(problem(long + " today")) == ("near_duplicate", problem_id(long))
    assert seen.check_and_add(problem("Something else entirely, about seven trains.")) is None


def test_texts_in_other_scripts_are_told_apart():
    seen = Duplicates(0.9)
    assert [duplicates(seen, text) for text in ("安有三个苹果。", "本有四支笔。", "安有三个苹果！")] == [None, None, "exact_duplicate"]
    assert eliminated_by("安有三个苹果。", "本有四支笔。") is None
    assert eliminated_by("安有三个苹果。", "安有三个苹果？") == "no_information_gain"


def test_ranks_share_ties():
    qualities = [Quality(1, 1, 0), Quality(1, 1, 1), None, Quality(0, 1, 1, "x"), Quality(0, 0, 0)]
    items = ranked_items([problem(f"q{place}") for place in range(5)], [qualities])
    assert [(item.text, item.rank) for item in items] == [("q1", 0), ("q0", 1), ("q3", 1), ("q4", 2)] and items[2].kind == "x"


def test_monte_carlo_against_hand_counts():
    asked = []

    def completions(prefixes):
        asked.extend(prefixes)
        return [["7", "8", None, "7.0"], ["1", "2", "3", "4"]]

    rates = monte_carlo(["a", "b", "c"], "7", completions, "7")
    assert rates == [0.5, 0.0, 1.0] and asked == [["a"], ["a", "b"]]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 16])
def test_bisection_finds_every_first_error_with_few_prefixes(count):
    steps = [f"s{place}" for place in range(count)]
    for error in range(1, count + 1):
        asked = []

        def completions(prefixes, error=error, asked=asked):
            asked.extend(len(prefix) for prefix in prefixes)
            assert all(list(prefix) == steps[: len(prefix)] for prefix in prefixes)
            return [["7.0", None] if len(prefix) < error else ["8", None] for prefix in prefixes]

        labels, rates = bisection(steps, "7", completions, "8")
        assert labels == [1.0] * (error - 1) + [0.0] + [None] * (count - error)
        assert len(asked) <= math.ceil(math.log2(count)) and len(set(asked)) == len(asked)
        measured = {length: 0.5 if length < error else 0.0 for length in asked} | {count: 0.0}
        assert rates == [measured.get(length) for length in range(1, count + 1)]
    assert bisection(steps, "7", lambda prefixes: pytest.fail("nothing to complete"), "7.0") == (
        [1.0] * count,
        [None] * (count - 1) + [1.0],
    )


def test_bisection_by_threshold_and_verdicts_by_value():
    def completions(prefixes):
        return [["7"] * (4 - len(prefix)) + [None] * len(prefix) for prefix in prefixes]  # rates 3/4, 2/4, 1/4

    assert bisection(list("abcd"), "7", completions, None) == ([1.0, 1.0, 1.0, 0.0], [None, 0.5, 0.25, 0.0])
    assert bisection(list("abcd"), "7", completions, None, threshold=0.5) == ([1.0, 0.0, None, None], [0.75, 0.5, None, 0.0])
    judged, sampled = [1.0, 1.0, 0.0, None], [1.0, 0.0, None, None]
    assert agreement([judged, [1.0]], [sampled, [1.0]]) == 2 / 3 and agreement([[None]], [[1.0]]) is None


def test_exact_labels_by_value():
    assert exact_labels([1.0, None, 1.0], True) == [1.0, 1.0, 1.0]
    assert exact_labels([1.0, None, 1.0], False) == [None] * 3 == exact_labels([1.0, None, 1.0], None)
    assert exact_labels([1.0, 0.0, None, 0.0], True) == [None, 0.0, None, None] == exact_labels([1.0, 0.0, None, 0.0], False)


def solution(answer, steps=("s",)):
    return Solution(problem_id="p", question="q", steps=steps, answer=answer, text="t", writer="w")


def test_responding_keeps_what_agrees():
    known, unknown = problem("q", answer="7"), problem("q")
    assert choose_solution(known, [solution("8"), solution("7.0")], min_agreement=0.9)[0].answer == "7.0"
    assert choose_solution(known, [solution("8")], min_agreement=0.1)[1] == "wrong_answer"
    kept, _ = choose_solution(unknown, [solution("7"), solution("7.0"), solution("9"), solution(None)], min_agreement=0.5)
    assert kept.answer == "7" and kept.agreement == 0.5
    assert choose_solution(unknown, [solution("7"), solution("8"), solution("9")], min_agreement=0.3)[1] == "not_self_consistent"
    assert choose_solution(unknown, [solution("7")], min_agreement=0.5)[1] == "not_self_consistent"
    assert choose_solution(unknown, [solution("7", steps=())], min_agreement=0.5)[1] == "no_answer"


class Scripted(ChatModel):
    name = "scripted"

    def __init__(self, *answers):
        self.replies, self.seen = list(answers), []

    def complete(self, conversations, *, temperature, max_tokens, seed, schema=None):
        self.seen += [messages[-1]["content"] for messages in conversations]
        return [self.replies.pop(0) for _ in conversations]

    def expected_digit(self, conversations, opening):
        return None


def teacher(*answers):
    return ChatTeacher(Scripted(*answers), ModelSection(random=RandomInit()), temperature=0.7, max_tokens=64)


def test_the_chat_teacher_evolves_with_lineage_and_tolerates_wrapping():
    one = teacher("**New problem:** Ann has 9 pens. How many?", None)
    children = one.evolve([problem(PARENT), problem("other")], ["up.add_step", "down.easier_topic"], round=2, seed=0)
    assert children[0].question == "Ann has 9 pens. How many?" and children[1] is None
    assert children[0].lineage.model_dump() == {
        "parent": problem_id(PARENT),
        "root": problem_id(PARENT),
        "operation": "up.add_step",
        "round": 2,
        "teacher": "scripted",
        "finished": True,
    }
    assert PARENT in one.chat.seen[0] and children[0].answer is None


def test_the_chat_teacher_answers_and_judges():
    (row,) = teacher("12+5=17\n#### 17", "no idea").respond([problem(PARENT)], 2, seed=0)
    assert row[0].steps == ("12+5=17",) and row[0].answer == "17" and row[1].answer is None
    quality = teacher('Sure! {"definition": 8, "precision": 10, "integrity": 3}').judge_instructions([problem(PARENT)], seed=0)[0]
    assert (quality.definition, quality.precision, quality.integrity) == (0.8, 1.0, 0.3)
    assert teacher("Step 2").judge_steps([problem(PARENT)], [["a", "b", "c"]], seed=0) == [[1.0, 0.0, None]]
    assert parse_first_error("0", 2) == [1.0, 1.0] and parse_first_error("hm", 2) == [None, None] and parse_quality("definition 3") is None


def test_a_perturbed_step_differs_in_one_number_sign_or_name():
    rng, step, before = random.Random(0), "Ben 8+5=13", "Ann has 8 apples. Then Ben gets 40 more than Ann and Cal has."
    found = {perturbed(step, before, rng) for _ in range(400)}
    assert step not in found and {"Ann 8+5=13", "Cal 8+5=13", "Ben 40+5=13", "Ben 8*5=13", "Ben 8+5=12"} <= found
    for text in found:
        old, new = (re.findall(r"[A-Za-z]+|\d+|[-+*/]", one) for one in (step, text))
        assert len(old) == len(new) and sum(a != b for a, b in zip(old, new, strict=True)) == 1
    assert perturbed("so it is", "Ann has 8", rng) is None


@pytest.mark.parametrize("bomb", ["\n" * 200_000, ": " * 100_000 + "é", "then" + " " * 200_000, "please\t" * 50_000])
def test_no_text_makes_the_rules_of_elimination_slow(bomb):
    began = time.process_time()
    eliminated_by(PARENT, f"Ann has 3 eggs{bomb}x", require_question=True)
    assert time.process_time() - began < 1


def test_a_step_of_a_hundred_thousand_numbers_is_perturbed_at_once():
    began = time.process_time()
    changed = perturbed("1 " * 50_000, "2 " * 50_000, random.Random(0))
    assert changed is not None and len(changed.split()) == 50_000 and set(changed.split()) <= {"1", "2", "3", "4"}
    assert time.process_time() - began < 1
