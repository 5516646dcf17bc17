"""Which prompts an iteration takes."""

from __future__ import annotations

import pytest

from rlef.config import ModelSection
from rlef.errors import UserError
from rlef.records import Problem, problem_id, write_jsonl
from rlef.rl.sampling import read_prompts, take_prompts


def test_a_pass_takes_each_prompt_once_in_an_order_of_its_own():
    prompts = list(range(10))
    taken = [take_prompts(prompts, iteration, 3, seed=0) for iteration in range(6)]  # three pieces a pass, one prompt left out
    for first in (0, 3):
        whole = [prompt for piece in taken[first : first + 3] for prompt in piece]
        assert len(set(whole)) == 9
    assert taken[:3] != taken[3:]
    assert take_prompts(prompts, 1, 3, seed=0) == taken[1] != take_prompts(prompts, 1, 3, seed=1)  # in any order of asking
    with pytest.raises(UserError, match="11 are wanted"):
        take_prompts(prompts, 0, 11, seed=0)


def test_what_has_no_final_answer_is_not_practised(tiny, tmp_path):
    _, tokenizer = tiny
    questions = {"general": "Name a colour.", "math": "What is 1+1?", "code": "Sort a list."}
    rows = [Problem(id=problem_id(question), question=question, domain=domain) for domain, question in questions.items()]
    write_jsonl(tmp_path / "mixed" / "prompts.jsonl", rows)
    prompts = read_prompts(tmp_path / "mixed", tokenizer, ModelSection(), use_answers=False)
    assert [prompt.problem.question for prompt in prompts] == ["What is 1+1?"]
    write_jsonl(tmp_path / "general" / "prompts.jsonl", rows[:1])
    with pytest.raises(UserError, match="no problem of domain math"):
        read_prompts(tmp_path / "general", tokenizer, ModelSection(), use_answers=False)
    (tmp_path / "general" / "prompts.jsonl").write_text("")
    with pytest.raises(UserError, match=r"prompts\.jsonl: no problem is left to practise on"):
        read_prompts(tmp_path / "general", tokenizer, ModelSection(), use_answers=False)
