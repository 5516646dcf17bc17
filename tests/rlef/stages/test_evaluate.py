"""What evaluation counts, from hand-made outcomes."""

from __future__ import annotations

import pytest

from reward_models.process import StepScores
from rlef.config import Config
from rlef.models import load_tokenizer
from rlef.records import Outcome, Problem, problem_id, read_jsonl, write_jsonl
from rlef.rl.functions import GradeFunction
from rlef.rollout.base import Completion
from rlef.stages.context import StageContext
from rlef.stages.evaluate import _answer, summarise
from rlef.tracking import Tracker


def outcome(number, right, depth=1, answer="1", **votes):
    return Outcome(problem_id=str(number), depth=depth, text="t", answer=answer, right=right, finished=True, **votes)


def test_shares_depths_and_extraction_failures():
    rows = [
        outcome(0, True, sampled_right=4, majority=True, prm_vote=True, best=True),
        outcome(1, False, depth=2, answer=None, sampled_right=1, majority=False, prm_vote=True, best=False),
        outcome(2, True, depth=2),
        outcome(3, False, depth=2),
    ]
    found = summarise(rows, 4)
    assert found["pass@1"] == 0.5 and found["n"] == 4 and found["vote_n"] == 2
    assert found["extraction_failures"] == 0.25 and found["by_depth"] == {"1": 1.0, "2": pytest.approx(1 / 3)}
    assert found["pass@4"] == 1.0 and found["majority@4"] == 0.5 and found["prm_vote@4"] == 1.0 and found["best_of_4"] == 0.5
    assert found["sampled_pass@1"] == pytest.approx(5 / 8) and found["prm_vote_minus_majority"]["mean"] == 0.5
    assert "majority@4" not in summarise(rows[2:], 4)


def test_28_votes_count_equal_numbers_together_and_skip_what_has_no_answer(tiny_folder, tmp_path, monkeypatch):
    """From sampled text to votes: 18 and 18.0 are one answer, and a solution without one has no vote however well it is scored."""
    texts = ["1\n#### 5", "2\n#### 18", "3\n#### 18.0", "4\nno answer"]
    scores = {"1": 0.5, "2": 0.3, "3": 0.3, "4": 0.99}

    def generate(self, requests, params, progress=None):
        tokenizer = load_tokenizer(tiny_folder)
        ids = [tokenizer.encode(text) for text in texts[: 1 if params.temperature == 0 else 4]]
        return [Completion((*row, tokenizer.eos_token_id), (), True) for row in ids]

    class Prm:
        def score(self, questions, steps, batch_size):
            return [StepScores(tuple(scores.get(step, 0.9) for step in row)) for row in steps]

    monkeypatch.setattr("rlef.rollout.hf.HFGenerator.generate", generate)
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evaluate": {"kind": "evaluate", "k": 4}}})
    ctx = StageContext("evaluate", config, config.stages["evaluate"], {"policy:sft": tiny_folder}, tmp_path, Tracker.null())
    held_out = [Problem(id=problem_id("q"), question="q", answer="18")]
    (one,) = _answer(ctx, ctx.settings, "sft", held_out, Prm())
    assert (one.sampled_right, one.majority, one.prm_vote, one.best) == (2, True, True, False) and not one.right
    assert one.unjudged == 0 and "prm_unjudged" not in summarise([one], 4)
    write_jsonl(tmp_path / "samples.jsonl", [one])
    assert read_jsonl(tmp_path / "samples.jsonl", Outcome) == [one]  # a sample without an answer among them

    # A user's function sees no known answer; what it cannot judge weighs nothing and is counted.
    (tmp_path / "r.py").write_text("def grade(question, steps, answer, gold):\n    return None if gold or answer != '5' else 0.5\n")
    (one,) = _answer(ctx, ctx.settings, "sft", held_out, GradeFunction(str(tmp_path / "r.py"), "grade"))
    assert (one.prm_vote, one.best, one.unjudged) == (False, False, 3) and summarise([one], 4)["prm_unjudged"] == 3


def test_a_policy_is_sampled_from_the_server_that_holds_it(tiny_folder, tmp_path, monkeypatch):
    made = []

    class Served:
        def __init__(self, url, folder, *, concurrency):
            made.append((url, folder, concurrency))

        def check(self, model, prompt):
            made.append(tuple(prompt))

        def generate(self, requests, params, progress=None):
            return [Completion((9,), (-0.5,), True) for _ in requests]

    monkeypatch.setattr("rlef.rollout.served.ServedGenerator", Served)
    stage = {"kind": "evaluate", "k": 2, "batch_size": 7, "servers": {"sft": "http://here/v1"}}
    config = Config.model_validate({"model": {"random": {}}, "stages": {"sft": {"kind": "sft"}, "evaluate": stage}})
    ctx = StageContext("evaluate", config, config.stages["evaluate"], {"policy:sft": tiny_folder}, tmp_path, Tracker.null())
    (one,) = _answer(ctx, ctx.settings, "sft", [Problem(id=problem_id("q"), question="q", answer="18")], None)
    assert made[0] == ("http://here/v1", str(tiny_folder), 7) and made[1] and one.text == load_tokenizer(tiny_folder).decode([9])
