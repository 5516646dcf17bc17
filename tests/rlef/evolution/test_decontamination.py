"""Held-out problems among evolved ones: as written, with words added, with other names or numbers, near in a model's space."""

from __future__ import annotations

import pytest
import torch

from rlef.evolution.decontamination import HeldOut, without_names
from rlef.evolution.neighbours import Neighbours
from rlef.records import Problem, problem_id
from rlef.symbolic import make_problems

TESTS = [
    "Grace picks 14 pears on Monday. Will picks twice as many as she does and gives 3 of them to his aunt. How many pears do they have left?",
    "The bakery in Old Harbour sells rolls for $2 each. Mr. Tan buys 12 of them every week. How much does he spend on rolls in 5 weeks?",
    "A tank holds 90 liters. A pump fills it at 6 liters a minute while a leak loses 1 liter a minute. After how many minutes is it full?",
    "James' shop has 40 kites. He sells a quarter of them to Ana and 5 to Ben, then he orders 16 more. How many kites are in the shop now?",
]
RENAMED = [
    "Ivan picks 14 pears on Monday. Mary Lou picks twice as many as he does and gives 3 of them to her aunt. How many pears do they have left?",
    "The bakery in Lisbon sells rolls for $2 each. Ms. Van Houten buys 12 of them every week. How much does she spend on rolls in 5 weeks?",
    TESTS[2],
    "Zoe's shop has 40 kites. She sells a quarter of them to Kim and 5 to Lee, then she orders 16 more. How many kites are in the shop now?",
]
RENUMBERED = [
    "Grace picks 9 pears on Monday. Will picks 3 times as many as she does and gives 5 of them to his aunt. How many pears do they have left?",
    "The bakery in Old Harbour sells rolls for $4 each. Mr. Tan buys 1,100 of them every week. How much does he spend on rolls in 7 weeks?",
    "A tank holds 80 liters. A pump fills it at 9 liters a minute while a leak loses 2 liters a minute. After how many minutes is it full?",
    "James' shop has 64 kites. He sells half of them to Ana and 9 to Ben, then he orders thirty more. How many kites are in the shop now?",
]
ADDED = "Last summer the village held its fair as always, and the mayor asked the school to count everything with care."


def problem(text, **fields):
    return Problem(id=problem_id(text), question=text, **fields)


def rule(held, text):
    match = held.overlap(problem(text))
    return match and match.rule


@pytest.fixture(scope="module")
def held():
    return HeldOut([problem(text) for text in TESTS])


@pytest.mark.parametrize("number", range(len(TESTS)))
def test_a_planted_test_problem_is_found(held, number):
    text = TESTS[number]
    for disguised in (text, text.upper(), f"{ADDED} {text}", f"{text} {ADDED}", f"{ADDED} {text.replace('. ', '.  ')} {ADDED}"):
        match = held.overlap(problem(disguised))
        assert (match.rule, match.test.question, match.ratio) == ("held_out_text", text, 1.0)


@pytest.mark.parametrize("test,renamed", zip(TESTS, RENAMED, strict=True))
def test_other_names_hide_nothing(test, renamed):
    alone = HeldOut([problem(test)], run=100)  # so long a run is in none: the mask alone must find it
    for text in (renamed, f"{ADDED} {renamed} {ADDED}"):
        match = alone.overlap(problem(text))
        assert match.ratio >= 0.7 and match.rule == ("held_out_text" if renamed == test else "held_out_renamed")


def test_the_mask_takes_runs_possessives_and_pronouns():
    texts = ("James' cat and he saw Mr. Tan.", "Zoe's cat and she saw Ana.", "Mary Lou’s cat and he saw Ben.")
    assert [without_names(text) for text in texts] == [["@", "cat", "and", "@", "saw", "@"]] * 3


@pytest.mark.parametrize("test,renumbered", zip(TESTS, RENUMBERED, strict=True))
def test_other_numbers_have_a_rule_of_their_own(test, renumbered):
    alone = HeldOut([problem(test)], run=100)
    names = renumbered.replace("Grace", "Ivan").replace("Mr. Tan", "Ms. Ek").replace("Ben", "Lee")
    assert rule(alone, renumbered) == rule(alone, names) == "held_out_renumbered"


def test_what_is_merely_alike_passes(held):
    for text in (
        "Grace picks 14 apples on Monday and eats 3 of them. Will has twice as many as are left. How many apples does Will have?",
        "A tank holds 90 liters. Two taps empty it at 6 liters a minute each. How long does that take?",
        "How many kites are in the shop now?",
    ):
        assert held.overlap(problem(text)) is None


def test_the_thresholds_are_the_configs():
    part = "Yesterday Grace picks 14 pears on Monday. Will picks twice as many as she does and nobody eats any. Who has more?"
    assert rule(HeldOut([problem(TESTS[0])], run=13), part) == "held_out_text"
    assert rule(HeldOut([problem(TESTS[0])], run=30), part) is None
    assert rule(HeldOut([problem(TESTS[0])], run=30, share=0.4), part) == "held_out_text"


def test_a_short_text_is_not_known_by_its_mask():
    held = HeldOut([problem("What is the capital of France?", domain="general")])
    assert rule(held, "What is the capital of France?") == "held_out_text" and rule(held, "What is the capital of Italy?") is None


def test_held_out_text_and_shape():
    tests = make_problems(50, depths=(1, 4), seed=0, split="held_out")
    held = HeldOut(tests)
    for one in tests:
        bare = one.model_copy(update={"truth": None})
        assert rule(held, one.question) == "held_out_text" and held.overlap(one).rule == "held_out_shape"
        assert held.overlap(bare.model_copy(update={"question": "Well then. " + one.question + " Think about it."})).rule == "held_out_text"
    assert not any(held.overlap(one) for one in make_problems(50, depths=(1, 4), seed=0, split="train"))


def test_neighbours_of_a_local_model(tiny_folder):
    near = Neighbours([problem(text) for text in TESTS], str(tiny_folder), 0.9999, torch.device("cpu"))
    matches = near.nearest([TESTS[2], "Yes.", TESTS[0]])
    assert [match and match.test.question for match in matches] == [TESTS[2], None, TESTS[0]]
    assert (
        all(match is None or (match.rule == "held_out_neighbour" and match.ratio >= 0.9999) for match in matches) and near.nearest([]) == []
    )
    # The padding of a batch changes no vector.
    assert torch.allclose(near.embed(["Yes.", TESTS[0]])[0], near.embed(["Yes."])[0], atol=1e-5)
