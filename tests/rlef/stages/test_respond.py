"""The respond stage keeps a solution by the known answer, or by agreement alone where it is told so."""

from __future__ import annotations

import pytest

from rlef.config import Config
from rlef.records import Problem, Solution, read_jsonl, write_jsonl
from rlef.stages import respond
from rlef.stages.context import StageContext
from rlef.symbolic import make_problems
from rlef.tracking import Tracker


@pytest.mark.parametrize("use_answers", [True, False])
def test_what_a_teacher_misreads_every_time_passes_agreement_alone(tmp_path, use_answers):
    stage = {"kind": "respond", "count": 60, "use_answers": use_answers}
    config = Config.model_validate({"model": {"random": {}}, "teacher": {"misread_rate": 1.0}, "stages": {"respond": stage}})
    problems = make_problems(80, depths=(1, 3), seed=0, split="train")
    write_jsonl(tmp_path / "evolved.jsonl", problems)
    result = respond.run(StageContext("respond", config, config.stages["respond"], {"prompts": tmp_path}, tmp_path, Tracker.null()))
    known = {problem.id: problem.answer for problem in problems}
    solved = list(read_jsonl(tmp_path / "solved.jsonl", Solution))
    wrong = sum(one.answer != known[one.problem_id] for one in solved)
    assert result["solved"] == len(solved) > 20
    assert wrong == 0 if use_answers else wrong > 0.1 * len(solved)
    assert result["rejected"].keys() == ({"wrong_answer"} if use_answers else set()) | ({"not_self_consistent"} & result["rejected"].keys())
    left = {problem.id for problem in read_jsonl(tmp_path / "prompts.jsonl", Problem)}
    assert len(left) == 20 and not left & {one.problem_id for one in solved}


@pytest.mark.parametrize(
    "text,rule",
    [
        ("The Loire is the longest river of France.", None),
        ("", "no_answer"),
        (" \n", "no_answer"),
        ("Name a river!", "repeats_question"),
        ("Name a river: the Loire.", None),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("Sorry, as a language model I am not able to access maps.", "refusal"),
        ("I cannot answer this.", "refusal"),
        ("As an AI language model, I am unable to browse, and I cannot provide names.", "refusal"),
        ("Unfortunately, I won’t be able to do this, since I can't access maps.", "refusal"),
        ("I’m so sorry for my late reply, and I cannot wait to see you again.", None),
        ("Sorry is a word that people say when they cannot help it.", None),
        ("I can name one: the Loire.", None),
        ("Dear Ann, I am sorry that I was late.", None),
    ],
)
def test_what_can_be_learnt_from(text, rule):
    response = Solution(problem_id="p", question="Name a river.", steps=(), answer=None, text=text, writer="t")
    assert respond.unusable("Name a river.", response) == rule
    cut = respond.unusable("Name a river.", response.model_copy(update={"finished": False}))
    assert cut == ("no_answer" if rule == "no_answer" else "cut_off")


def test_of_what_is_no_math_the_first_usable_response_is_kept_whatever_its_answer():
    texts = ("I cannot help.", "The Loire.", "The Rhine.")
    responses = [Solution(problem_id="p", question="q", steps=(), answer=None, text=text, writer="t") for text in texts]
    for domain in ("general", "code"):
        asked = Problem(id="p", question="Name a river.", answer="The Rhine", domain=domain)
        assert respond.choose_solution(asked, responses, min_agreement=1.0) == (responses[1], "")
        assert respond.choose_solution(asked, responses[:1], min_agreement=1.0) == (None, "refusal")
        assert respond.choose_solution(asked, [], min_agreement=1.0) == (None, "no_answer")
