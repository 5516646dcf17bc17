"""A user's function as a reward: what is told before a run, what its values become, and which mistakes are named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reward_models.process import StepScores
from rlef.errors import UserError
from rlef.rl.functions import GradeFunction, RateFunction, check_function

EXAMPLE = str(Path(__file__).parents[3] / "configs" / "rewards" / "exact_match.py")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(text, name="r.py"):
        (tmp_path / name).write_text(text)
        return name

    return to_file


def grade(write, returned, steps=("a", "#### 7"), answer="7", gold=None):
    file = write(f"from math import nan\ndef grade(question, steps, answer, gold):\n    return {returned}\n")
    return GradeFunction(file, "grade").grade("What?", steps, answer, gold)


@pytest.mark.parametrize(
    ("returned", "scores"),
    [
        ("0.25", (0.25,)),
        ("answer == '7'", (1.0,)),  # a verdict is a number
        ("0", (0.0,)),
        ("[0.5, 1]", (0.5, 1.0)),
        ("tuple(0.1 * len(step) for step in steps)", (0.1, pytest.approx(0.6))),
        ("0.5 if gold is None else 1.0", (0.5,)),
    ],
)
def test_a_number_is_of_the_whole_answer_and_a_list_of_its_steps(write, returned, scores):
    assert grade(write, returned).scores == scores


def test_none_is_no_score_and_nothing_is_asked_about_no_step(write):
    assert grade(write, "None") is None
    assert grade(write, "1 / 0", steps=()) == StepScores(())


def test_the_function_sees_question_steps_answer_and_gold(write):
    assert grade(write, "(question, steps, answer, gold) == ('What?', ['a', 'b'], None, '8')", ["a", "b"], None, "8").scores == (1.0,)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("1.5", "gave something else than scores in 0..1: 1.5"),
        ("-0.1", "gave something else than scores in 0..1: -0.1"),
        ("nan", "gave something else than scores in 0..1: nan"),
        ("'good'", "gave something else than scores in 0..1: 'good'"),
        ("[0.5, None]", "gave something else than scores in 0..1: [0.5, None]"),
        ("[0.5, nan]", "gave something else than scores in 0..1: [0.5, nan]"),
        ("[0.5]", "gave 1 scores for 2 steps: [0.5]"),
        ("[]", "gave 0 scores for 2 steps: []"),
        ("1 / 0", ", line 3: ZeroDivisionError: division by zero"),
        ("sorted([answer, 1])", ", line 3: TypeError"),
    ],
)
def test_a_wrong_value_or_an_exception_is_one_message_with_file_function_and_question(write, returned, told):
    with pytest.raises(UserError) as error:
        grade(write, returned)
    assert str(error.value).startswith("r.py:grade") and told in str(error.value) and "(question: 'What?')" in str(error.value)


def test_r_i_of_a_function(write):
    rate = RateFunction(write("def rate(question):\n    return {'a': 0.5, 'b': None}[question]\n"), "rate")
    assert rate.score(["a", "b", "a"]) == [0.5, None, 0.5]
    with pytest.raises(UserError, match=r"r\.py:rate, line 2: KeyError: 'c' \(question: 'c'\)"):
        rate.score(["a", "c"])
    with pytest.raises(UserError, match=r"r\.py:rate gave something else than scores in 0\.\.1: 2"):
        RateFunction(write("def rate(question):\n    return 2\n"), "rate").score(["a"])


def test_a_file_is_run_once_for_both_and_again_when_it_changed(write):
    text = "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\ndef rate(question): return {}\ndef grade(q, s, a, g): return {}\n"
    file = write(text.format(0.5, 0.5))
    try:
        assert RateFunction(file, "rate").score(["q"]) == [0.5] and GradeFunction(file, "grade").grade("q", ["s"], None, None).scores == (
            0.5,
        )
        assert sys.runs == 1
        write(text.format(0.4, 0.5))
        assert RateFunction(file, "rate").score(["q"]) == [0.4] and sys.runs == 2
        assert not Path("__pycache__").exists()
    finally:
        del sys.runs


def test_a_file_that_fails_when_it_is_run_is_named_with_its_line(write):
    file = write("x = 1\nimport no_such_package\ndef grade(question, steps, answer, gold): return 1\n")
    check_function("prm", file, "grade")  # it is not run for this
    with pytest.raises(UserError, match=r"r\.py, line 2: ModuleNotFoundError"):
        GradeFunction(file, "grade")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def grades(question, steps, answer, gold): return 1", "r.py: has no function grade; did you mean `grades`?"),
        ("if True:\n    def grade(question, steps, answer, gold): return 1", "not indented"),
        ("x = 1\ndef grade(question, answer): return 1", "r.py, line 2: grade takes other parameters"),
        ("def grade(q, s, a, g, more): return 1", "write `def grade(question, steps, answer, gold): ...`"),
        ("def grade(q, s, a, g, *, more): return 1", "takes other parameters"),
        ("async def grade(q, s, a, g): return 1", "has no function grade"),
        ("x = 1\ndef grade(:", "r.py, line 2: not valid Python"),
    ],
)
def test_what_is_told_before_a_run(write, text, told):
    with pytest.raises(UserError) as error:
        check_function("prm", write(text), "grade")
    assert told in str(error.value)


@pytest.mark.parametrize("parameters", ["question, steps, answer, gold", "q, *rest", "q, s, a, g, more=1, *, other=2", "q, s, a, g=None"])
def test_functions_that_can_be_called_are_taken(write, parameters):
    check_function("prm", write(f"def grade({parameters}): return 1"), "grade")


def test_a_missing_file_is_told(write):
    with pytest.raises(UserError, match=r"no\.py: cannot be read .*\n.*the folder you start in"):
        check_function("irm", "no.py", "rate")


def test_the_example_that_is_shipped():
    for key, name in (("prm", "grade"), ("irm", "rate")):
        check_function(key, EXAMPLE, name)
    one = GradeFunction(EXAMPLE, "grade")
    assert one.grade("q", ["#### 7.0"], "7.0", "7").scores == (1.0,) and one.grade("q", ["#### 8"], "8", "7").scores == (0.0,)
    assert one.grade("q", ["x"], None, "7").scores == (0.0,) and one.grade("q", ["#### 7"], "7", None) is None
    assert RateFunction(EXAMPLE, "rate").score(["How many?", "Ann has 3 pens."]) == [1.0, 0.1]
