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
