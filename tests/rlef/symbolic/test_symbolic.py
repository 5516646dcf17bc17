"""The embedded domain: exact, split by shape, and its teacher's flaws are what they claim."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rlef.symbolic.programs import HELD_OUT_ONE_STEP, LARGEST, NAMES, ONE_STEP, QUESTIONS, SIGNS, TOPICS, Program, Statement, is_held_out
from rlef.symbolic.render import FLAWS, QUESTION_WORDINGS, WORDINGS, render
from rlef.symbolic.teacher import OPERATIONS, SymbolicTeacher, as_problem, judge, make_problems

PROBLEMS = make_problems(300, depths=(1, 5), seed=0, split="train")
HAND = Program(
    "apples",
    ("Ann", "Ben"),
    (Statement("given", 0, None, 8), Statement("more", 1, 0, 5), Statement("lose", 1, None, 3), Statement("total", 1, 0)),
    1,
)


def program(problem):
    return Program.from_json(problem.truth.program)


def test_the_domain_is_as_wide_as_it_says():
    assert len(SIGNS) >= 8 and len(TOPICS) >= 10 and len(NAMES) >= 10
    assert all(len(choices) >= 3 for choices in [*WORDINGS.values(), *QUESTION_WORDINGS.values()])
    used = Counter(statement.op for problem in PROBLEMS for statement in program(problem).statements)
    assert set(SIGNS) <= set(used)


def test_a_hand_made_program():
    assert [str(step) for step in HAND.steps()] == ["Ben 8+5=13", "Ben 13-3=10", "all 10+8=18"]
    assert HAND.answer == 18 and HAND.depth == 3 and HAND.shape() == "given0 more1<0 lose1 total0<1 ?"


def test_only_what_matters_is_a_step():
    astray = Program(
        "apples", ("Ann", "Ben"), (Statement("given", 0, None, 5), Statement("given", 1, None, 9), Statement("gain", 0, None, 2)), 0
    )
    assert astray.needed() == [0, 2] and astray.depth == 1


def test_every_solution_follows_from_the_text():
    """Each number of the program stands in the text, and each step's arithmetic is right."""
    for problem in PROBLEMS:
        for statement in program(problem).statements:
            if statement.op not in ("total", "difference"):
                assert re.search(rf"(?<!\d){statement.n}(?!\d)", problem.question), problem.question
        steps = [str(step) for step in program(problem).steps()]
        for step in steps:
            a, sign, b, value = re.fullmatch(r"[A-Za-z]+ (\d+)([-+*/])(\d+)=(\d+)", step).groups()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign] == int(value) <= LARGEST
        assert problem.answer == steps[-1].split("=")[1] and len(steps) == problem.depth
        assert problem.answer == steps[-1].split("=")[1] and list(problem.solution) == steps and len(steps) == problem.depth


def test_shapes_are_split_and_every_depth_is_on_both_sides():
    held_out = make_problems(300, depths=(1, 5), seed=0, split="held_out")
    assert not {p.truth.shape for p in PROBLEMS} & {p.truth.shape for p in held_out}
    for rows in (PROBLEMS, held_out):
        assert set(Counter(p.depth for p in rows)) == {1, 2, 3, 4, 5} and len({p.question for p in rows}) == 300


def test_one_step_shapes_are_all_known_and_on_both_sides():
    seen = {p.truth.shape for side in ("train", "held_out") for p in make_problems(800, depths=(1, 1), seed=0, split=side)}
    assert seen <= ONE_STEP and HELD_OUT_ONE_STEP < ONE_STEP
    assert {is_held_out(shape) for shape in seen} == {True, False}


def test_what_does_not_matter_makes_no_other_shape():
    plain = Program("apples", ("Ann", "Ben"), (Statement("given", 0, None, 5), Statement("gain", 0, None, 2)), 0)
    led_astray = Program(
        "apples", ("Ann", "Ben"), (Statement("given", 1, None, 9), Statement("given", 0, None, 5), Statement("gain", 0, None, 2)), 0
    )
    assert plain.shape() == led_astray.shape()


def test_shapes_ignore_names_numbers_and_topics():
    other = Program(
        "coins", ("Sam", "Pam"), tuple(Statement(s.op, s.who, s.ref, s.n + 1 if s.n else 0) for s in HAND.statements), 1, style=9
    )
    assert other.shape() == HAND.shape()


def test_all_is_a_function_of_the_seed():
    assert PROBLEMS == make_problems(300, depths=(1, 5), seed=0, split="train") != make_problems(300, depths=(1, 5), seed=1, split="train")


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_what_they_claim(flaw):
    for problem in PROBLEMS[:100]:
        sound, text = problem.question, render(program(problem), flaw=flaw)
        assert text != sound and as_problem(program(problem), flaw=flaw).answer is None
        if flaw == "missing_quantity":
            assert len(re.findall(r"\d+", text)) < len(re.findall(r"\d+", sound)) and "some" in text
        elif flaw == "no_question":
            assert "?" not in text and "Find" not in text
        elif flaw == "ambiguous_reference":
            assert any(nobody in text for nobody in ("the other one", "one of them", "someone else"))
        else:
            assert len(text.split(".")) > len(sound.split("."))


def test_an_ambiguous_reference_has_two_readings():
    """Where the other one must be the only person named before it, the question becomes the open one."""
    two = Program("apples", ("Ann", "Ben"), (Statement("given", 0, None, 4), Statement("more", 1, 0, 5)), 1)
    assert (
        "other" not in render(two, flaw="ambiguous_reference")
        and "one of them" in render(two, flaw="ambiguous_reference").rsplit(". ", 1)[1]
    )
    three = Program("apples", ("Ann", "Ben", "Cal"), (*two.statements, Statement("times", 2, 1, 2)), 2)
    assert re.search(r"Cal .*the other one", render(three, flaw="ambiguous_reference"))
    assert "Ann" not in render(HAND, flaw="ambiguous_reference").rsplit(". ", 1)[1]  # not "one of them and Ann"
    equal = Program("apples", ("Ann", "Ben"), (*two.statements, Statement("lose", 1, None, 5)), 1)
    assert "someone else" in render(equal, flaw="ambiguous_reference")


def test_a_contradiction_concerns_the_answer():
    """Restated: a quantity that is needed, with a number that its owner has at no time."""
    given = "|".join(
        text.format(w=f"(?P<w{i}>[A-Z][a-z]+)", n=f"(?P<n{i}>\\d+)", t="[a-z]+", r="").replace(".", "\\.")
        for i, text in enumerate(WORDINGS["given"])
    )
    for problem in PROBLEMS:
        one = program(problem)
        sound, text = render(one), render(one, flaw="contradiction")
        added = [s for s in re.findall(r"[^.?]+\.", text) if text.count(s) > sound.count(s)]
        found = [m for s in added if (m := re.fullmatch(given, s.strip()))]
        assert len(found) == 1, text
        parts = {key[0]: value for key, value in found[0].groupdict().items() if value}
        who = one.names.index(parts["w"])
        assert any(one.statements[place].op == "given" and one.statements[place].who == who for place in one.needed())
        assert int(parts["n"]) not in {
            s.value if s else row.n for row, (s, _) in zip(one.statements, one.execute(), strict=True) if row.who == who
        }


def test_held_out_wordings_are_never_rendered_for_training():
    last = {choices[-1].format(w="W", r="R", n="N", t="T") for choices in WORDINGS.values()}
    first = {text.format(w="W", r="R", n="N", t="T") for choices in WORDINGS.values() for text in choices[:-1]}
    assert not last & first


def test_judge_by_hand():
    problem = as_problem(HAND)
    assert judge(problem, ["Ben 8+5=13", "Ben 13-3=10", "all 10+8=18", "#### 18"]) == [True] * 4
    assert judge(problem, ["Ben 5+8=13", "Ben 13-3=10", "all 8+10=18"]) == [True] * 3  # sums commute
    assert judge(problem, ["Ben 8+5=14", "Ben 14-3=11", "all 11+8=19", "#### 19"]) == [False] * 4  # what follows a wrong value is wrong
    assert judge(problem, ["Ben 8+3=11"]) == [False] and judge(problem, ["Ben 3-13=10"]) == [False]
    assert judge(problem, ["Ben 13-3=10"]) == [False]  # from a quantity that is not derived yet
    assert judge(problem, ["Ben 8+5=13", "Ben 8+5=13"]) == [True, False]  # said twice it leads nowhere
    assert judge(problem, ["Ann 8+5=13", "8+5=13"]) == [False] * 2  # of another person, of nobody
    assert judge(problem, ["", "9**9=1", "#### 17"]) == [False] * 3
    assert judge(as_problem(HAND, flaw="no_question"), ["Ben 8+5=13"]) == [False]


def test_every_gold_solution_is_judged_right():
    for problem in PROBLEMS:
        assert all(judge(problem, [*problem.solution, f"#### {problem.answer}"]))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_evolution_keeps_its_promises(operation):
    teacher = SymbolicTeacher(flaw_rate=0.0, max_depth=5)
    parents = [problem for problem in PROBLEMS if 2 <= problem.depth <= 4]
    children = [
        (p, c) for p, c in zip(parents, teacher.evolve(parents, [operation] * len(parents), round=1, seed=0), strict=True) if c and c.answer
    ]
    assert len(children) > 0.7 * len(parents)
    change = [c.depth - p.depth for p, c in children]
    if operation == "up.add_step":
        assert min(change) >= 0 and sum(change) / len(change) > 0.8
    if operation in ("down.drop_step", "down.easier_topic"):
        assert max(change) <= 0 and sum(change) / len(change) < -0.5
    if operation == "breadth.new_topic":
        assert all(program(c).topic != program(p).topic and c.depth == p.depth for p, c in children)
    for parent, child in children:
        assert child.lineage.parent == parent.id and child.lineage.operation == operation and child.solution is None
        assert not is_held_out(child.truth.shape) and child.answer == str(program(child).answer)


def test_the_teacher_errs_as_often_as_it_says():
    teacher = SymbolicTeacher(flaw_rate=0.3)
    children = [c for c in teacher.evolve(PROBLEMS, ["breadth.new_topic"] * 300, round=1, seed=1) if c]
    assert 0.2 < sum(c.truth.flaw is not None for c in children) / len(children) < 0.38
    answers = teacher.respond(PROBLEMS, 4, seed=0)
    right = [one.answer == problem.answer for problem, row in zip(PROBLEMS, answers, strict=True) for one in row]
    assert 0.9 < sum(right) / len(right) < 0.99


def test_a_misread_problem_is_misread_in_every_sample():
    """Agreement among samples cannot tell, and the steps follow from each other: only the sign of some relations is another."""
    asked = [problem for problem in PROBLEMS if {"fewer", "times"} & {row.op for row in program(problem).statements}]
    rows = SymbolicTeacher(misread_rate=0.5).respond(asked, 4, seed=0)
    wrong = 0
    for problem, row in zip(asked, rows, strict=True):
        # An error by chance changes the last value alone: what is worked out is the same in every sample.
        assert len({tuple(step.partition("=")[0] for step in one.steps) for one in row}) == 1
        steps, count = Counter(one.steps for one in row).most_common(1)[0]
        if count >= 3 and not all(judge(problem, steps)):
            wrong += 1
            first = judge(problem, steps).index(False)
            right = problem.solution[first]
            assert len(steps) == len(problem.solution) and re.split(r"[-+*]", right)[0] == steps[first].split("+")[0]
    assert 0.25 < wrong / len(asked) < 0.55  # not all can be misread within the range of quantities
    assert SymbolicTeacher().respond(asked, 1, seed=0) == SymbolicTeacher(misread_rate=0.0).respond(asked, 1, seed=0)


def test_rankings_put_sound_instructions_first():
    teacher = SymbolicTeacher()
    versions = teacher.versions(PROBLEMS[5], 7, seed=0)
    totals = {
        problem.truth.flaw: quality.total() for problem, quality in zip(versions, teacher.judge_instructions(versions, seed=0), strict=True)
    }
    assert set(totals) == {None, *FLAWS} and totals[None] > max(totals[flaw] for flaw in FLAWS)
    assert len(set(totals.values())) == len(totals)
    assert QUESTIONS
