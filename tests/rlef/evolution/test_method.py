"""Auto Evol-Instruct's pure parts: which evolutions fail, which proposals are templates, which wins, when the search ends."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlef import prompts
from rlef.config import ModelSection, RandomInit
from rlef.errors import UserError
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.method import (
    FAILURES,
    Trial,
    failed_child,
    failed_response,
    failure_rate,
    goes_on,
    no_method,
    parse_template,
    propose,
    split_parents,
    trajectory,
    try_out,
    winner,
)
from rlef.evolution.operations import operations_to_improve, read_operations, write_operations
from rlef.load_config import read_yaml
from rlef.records import Problem, problem_id
from rlef.rollout.remote import ChatModel

PARENT = "Ann has 12 apples. Ben has 5 more apples than Ann. How many apples does Ben have?"
TEMPLATE = "Make this harder, and write nothing but the new one.\n\n{question}"


def problem(text, **fields):
    return Problem(id=problem_id(text), question=text, **fields)


@pytest.mark.parametrize(
    "child,operation,rule",
    [
        ("", "up.add_step", "no_answer"),
        (PARENT, "up.add_step", "no_information_gain"),
        ("Sorry, I can not do that.", "up.add_step", "refusal"),
        ("Make this harder, and write nothing but: Ann has 12 apples. How many?", "up.add_step", "leaked_prompt"),
        ("Ann has 12 apples, Ben 5 more apples than Ann and Cal 2 more.", "up.add_step", "no_question"),
        ("A tram runs 40 km an hour. Where is it at noon?", "up.add_step", "lost_information"),
        ("A tram runs 40 km an hour. Where is it at noon?", "breadth.new_topic", None),  # another problem is what was asked for
        ("A tram runs 40 km an hour. Where is it at noon?", "down.easier_topic", None),
        (PARENT.replace("How", "Ben eats 2 of his apples. How"), "up.add_step", None),
    ],
)
def test_an_evolution_fails_by_its_text(child, operation, rule):
    assert failed_child(problem(PARENT), child, operation, TEMPLATE) == rule


def test_loss_is_told_in_scripts_that_do_not_part_words():
    parent = problem("安有三个苹果，本有四支笔。他们一共有多少东西？")
    assert failed_child(parent, "安有三个苹果又买了两个，本有四支笔。他们现在一共有多少东西？", "up.add_step", TEMPLATE) is None
    assert failed_child(parent, "火车每小时行九十公里，中午到哪里？", "up.add_step", TEMPLATE) == "lost_information"


def test_only_math_has_to_ask():
    assert failed_child(problem("Tell of apples.", domain="general"), "Tell of apples and pears.", "up.deepen", TEMPLATE) is None


@pytest.mark.parametrize(
    "response,rule",
    [
        ("", "no_response"),
        ("I'm sorry, but I can't help.", "refused"),
        ("Sure, what would you like to know?", "only_acknowledges"),
        ("Thank you! What is next?", "only_acknowledges"),
        ("Sure! Ben has 12 + 5 = 17 apples.", None),
        ("Certainly. " + "He adds five apples to those that Ann has. " * 6 + "Does that help?", None),
        ("Could you please provide the price of an apple?", "asks_back"),
        ("There is not enough information to tell.", "asks_back"),
        ("The price is not given, so nobody knows.", "asks_back"),
        ("We need to know more details. It cannot be determined.", "asks_back"),
        ("Which Ben do you mean?", "asks_back"),
        ("Please note that 12 + 5 = 17. He needs more apples, and 17 are provided.\n#### 17", None),
    ],
)
def test_an_evolution_fails_by_the_answer_it_gets(response, rule):
    assert failed_response(response) == rule


class Scripted(ChatModel):
    """Evolves by `children` (parent -> child), judges and answers by their text; remembers what it was asked."""

    name = "scripted"

    def __init__(self, children):
        self.children, self.seen = children, []

    def complete(self, conversations, *, max_tokens, temperature, **_):
        texts = [messages[0]["content"] for messages in conversations]
        self.seen += texts
        return [self.answer(text) for text in texts]

    def answer(self, text):
        if "Do these two problems" in text:
            return "yes" if "equally hard" in text else "no"
        if text in self.children.values():
            return "Please provide the number." if "some" in text else "17"
        return next((child for parent, child in self.children.items() if parent in text), "")


def chat_teacher(chat, templates=None):
    return ChatTeacher(chat, ModelSection(random=RandomInit()), temperature=0.7, max_tokens=64, templates=templates)


def test_what_fails_early_is_neither_judged_nor_answered():
    children = {
        "Ann has 1 pen.": "Ann has 1 pen.",
        "Ann has 2 pens.": "Ann has 2 pens that are equally hard. How many?",
        "Ann has 3 pens.": "Ann has some pens of 3. How many?",
        "Ann has 4 pens.": "Ann has 4 pens and 1 more. How many?",
    }
    chat = Scripted(children)
    trials = try_out(chat_teacher(chat), [problem(parent) for parent in [*children, "Ann."]], ["up.add_step"] * 5, seed=0)
    assert [trial.failure for trial in trials] == ["no_information_gain", "no_information_gain", "asks_back", None, "no_answer"]
    assert len(chat.seen) == 5 + 3 + 2
    rate = failure_rate(trials)
    assert rate["failures"] == {"no_information_gain": 2, "asks_back": 1, "no_answer": 1} and (rate["n"], rate["failure_rate"]) == (5, 0.8)
    assert rate["ci95"] == pytest.approx([0.3755, 0.9638], abs=1e-3)  # Wilson, by hand
    assert {trial.failure for trial in trials} - {None} <= FAILURES.keys()


@pytest.mark.parametrize(
    "answer,template",
    [
        ("New template:\nMake it harder.\n{question}", "Make it harder.\n{question}"),
        ("**Better template:** Make it harder: {question}", "Make it harder: {question}"),
        ("Here it is:\n```\nMake it harder.\n\n{question}\n```\nGood luck!", "Make it harder.\n\n{question}"),
        ("Template: {question}", "{question}"),
        ("Use this template of mine. {question}", "Use this template of mine. {question}"),
        ("Make it harder.", "Make it harder.\n\n{question}"),
        ("", ""),
    ],
)
def test_the_template_is_found_in_an_answer(answer, template):
    assert parse_template(answer) == template


TRIALS = [Trial(PARENT, "Ann has 12 red apples and Ben has 9 fewer green ones. Who has more?"), Trial("Sort the list.", "x y z")]


@pytest.mark.parametrize(
    "template,reason",
    [
        ("Make it harder and end with a question.\n\n{question}", None),
        ("Make it harder and end with a question.", "not_a_template"),
        ("{question}", "not_a_template"),
        (" ", "not_a_template"),
        (TEMPLATE.replace("\n\n", " "), "repeats"),
        ("Make it harder, as in: Ben has 5 more apples than Ann! Now: {question}", "copies_example"),
        ("Make it harder, as in: ben has 9 fewer green ones, now: {question}", "copies_example"),  # a child is no better
        ("Sort the list, then make it harder: {question}", "copies_example"),  # a short parent, all of it
        ("Make it harder; how many apples is for you to say: {question}", None),
        (TEMPLATE + " Make this harder, and write nothing but that.", None),
    ],
)
def test_a_proposal_is_checked_like_a_users_template_and_copies_nothing(template, reason):
    leaky = [*TRIALS, Trial("A parent.", "Make this harder, and write nothing but the new one. Done?")]  # the template's own words
    assert no_method("up.add_step", template, known=[TEMPLATE], trials=leaky) == reason


def test_the_optimiser_sees_failures_first_and_each_proposal_has_its_own_analysis():
    asked = []

    class Optimiser(ChatModel):
        name = "optimiser"

        def complete(self, conversations, *, seed, temperature, max_tokens, **_):
            texts = [messages[0]["content"] for messages in conversations]
            asked.append((texts, seed, temperature, max_tokens))
            if len(asked) == 1:
                return ["It asks {template} nothing.", None]
            return ["Template: End with a question.\n{question}", "End with  a question. {question}"]

    trials = [Trial("good parent", "good child", "17"), Trial(PARENT, "bad child " * 100, failure="no_question")]
    templates = read_operations() | {"math": {"up.add_step": TEMPLATE}}
    found = propose(chat_teacher(Optimiser(), templates), "math", "up.add_step", trials, count=2, temperature=0.9, max_tokens=99, seed=5)
    (analyses, first_seed, *rest), (rewrites, second_seed, *_) = asked
    assert (first_seed, second_seed, *rest) == (5, 7, 0.9, 99) and len(analyses) == len(rewrites) == 2
    text = analyses[0]
    assert TEMPLATE in text and "a harder problem from it" in text and FAILURES["no_question"] in text
    assert text.index(PARENT) < text.index("good parent") and text.count("bad child") == 40
    assert "Advice: It asks {template} nothing." in rewrites[0] and "(add step)" in rewrites[0]  # no second look at what was put in
    assert [(one.analysis, one.template, one.reason) for one in found] == [
        ("It asks {template} nothing.", "End with a question.\n{question}", None),
        ("", "End with  a question. {question}", "repeats"),
    ]
    assert trajectory([]) == "" and prompts.filled("{a} {b}", a="{b}") == "{b} {b}"


def test_the_fewest_failures_win_and_only_below_the_incumbent():
    assert winner(5, [6, 4, 3, 3]) == 2
    assert winner(5, [5, 6]) is None and winner(0, [0]) is None and winner(5, []) is None


def test_the_search_ends_when_nothing_improves_or_the_steps_are_used_up():
    assert goes_on([], 3, 2) and goes_on([False], 3, 2) and goes_on([False, True], 3, 2) and goes_on([False, True, False], 9, 2)
    assert not goes_on([True, False, False], 9, 2) and not goes_on([True] * 3, 3, 2)


def test_parents_of_different_uses_are_different():
    seeds = [problem(f"What is {number}?") for number in range(20)]
    parts = split_parents(seeds, development=5, batch=3, fresh=7, seed="s")
    assert parts is not None and (len(parts.development), len(parts.fresh), len(parts.pool)) == (5, 7, 8)
    assert {one.id for one in parts.development + parts.fresh + parts.pool} == {one.id for one in seeds}
    assert parts == split_parents(seeds, development=5, batch=3, fresh=7, seed="s")
    few = split_parents(seeds, development=5, batch=3, fresh=13, seed="s")
    assert few is not None and few.fresh is few.development and len(few.pool) == 15
    assert split_parents(seeds, development=15, batch=6, fresh=1, seed="s") is None


def test_all_harder_operations_of_the_domains_are_improved_unless_some_are_named():
    known = {"math": ("up.a", "down.b", "up.c"), "code": ("up.d",)}
    assert operations_to_improve(known, None, {"math"}) == [("math", "up.a"), ("math", "up.c")]
    assert operations_to_improve(known, ["code.up.d", "math.down.b", "code.up.d"], {"math"}) == [("code", "up.d"), ("math", "down.b")]
    with pytest.raises(UserError, match=r"did you mean `math\.up\.a`"):
        operations_to_improve(known, ["math.up.aa"], {"math"})


@settings(deadline=None)
@example("a\x85\nb\u2028")
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_method_is_read_as_it_was_written(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "versions" / "1.yaml"
    templates = {"general": {"up.mine": f"{text}Mine: {{question}}\n{text}"}}
    write_operations(file, templates)
    assert read_yaml(file, fix="") == templates


def test_a_whole_method_reads_like_the_packages_own_file(tmp_path):
    write_operations(tmp_path / "all.yaml", read_operations())
    assert read_operations(tmp_path / "all.yaml") == read_operations()
    assert "  up.add_step: |-\n    Change the problem at the end" in (tmp_path / "all.yaml").read_text()
