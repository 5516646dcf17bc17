"""Pass rates by value, and a policy that measures problems as its own samples say."""

from __future__ import annotations

import pytest

from rlef.config import Config, EvolveStage
from rlef.models import load_tokenizer
from rlef.records import Problem, problem_id
from rlef.rl.difficulty import Difficulty, pass_rate
from rlef.rollout.base import Completion


@pytest.mark.parametrize(
    ("answers", "weights", "known", "expected"),
    [
        (["4", "4", "5", None], [1, 1, 1, 1], None, 0.5),  # agreement with the majority; no answer agrees with nothing
        (["4", "4.0", "5", "6"], [1, 1, 1, 1], None, 0.5),  # one number, two forms
        (["4", "4", "5", "5"], [0.3, 0.3, 0.9, 0.4], None, 0.25),  # the vote is weighted, and the second 5 is not believed
        (["4", "4", "4", "4"], [0.2, 0.1, 0.2, 0.3], None, 0.0),  # one habit, which the reward model does not believe
        (["4", "5", "5", None], [0.0, 0.9, 0.9, 0.0], "4", 0.25),  # what is known counts, whatever the weights
        ([None, None], [1, 1], None, 0.0),
        ([None, None], [1, 1], "4", 0.0),
    ],
)
def test_a_pass_rate_is_the_share_of_answers_that_solve_it(answers, weights, known, expected):
    assert pass_rate(answers, weights, known=known) == pytest.approx(expected)


def problem(question, answer=None, domain="math"):
    return Problem(id=problem_id(question), question=question, answer=answer, domain=domain)


def measured(folder, problems, **settings):
    stage = EvolveStage(samples=4, max_tokens=16, **settings)
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evolve": stage.model_dump()}})
    counted = []
    rates = Difficulty(folder, None, stage, config).measure(problems, counted.append)
    assert sum(counted) == 4 * sum(one.domain == "math" for one in problems)
    return rates


def test_problems_are_measured_one_by_one(tiny_folder):
    problems = [problem(f"Ann has {n} pens. How many?", "3") for n in range(6)]
    rates = measured(tiny_folder, [*problems, problem("Write a poem.", domain="general")])
    assert rates[-1] is None and all(0 <= rate <= 1 for rate in rates[:-1])
    # Noise belongs to the problem: alone, in another order or in other batches it measures the same.
    assert measured(tiny_folder, problems[::-1], batch_size=3) == rates[5::-1]
    # A random model does not end its answers: nothing agrees, and nothing known is hit.
    assert measured(tiny_folder, problems, use_answers=True) == [0.0] * 6


def test_a_sample_that_could_not_be_judged_counts_in_no_pass_rate(tiny_folder, tmp_path, monkeypatch):
    """Three of four answers are judged and two of them agree; where none is judged there is no rate."""
    texts = ["#### 1", "#### 1", "#### 2", "#### 3"]

    def generate(self, requests, params, progress=None):
        tokenizer = load_tokenizer(tiny_folder)
        return [Completion((*tokenizer.encode(texts[request.key[-1]]), tokenizer.eos_token_id), (), True) for request in requests]

    monkeypatch.setattr("rlef.rl.difficulty.HFGenerator.generate", generate)
    (tmp_path / "r.py").write_text("def grade(q, steps, answer, gold):\n    return None if answer == '3' or q == 'odd' else 0.9\n")
    stage = EvolveStage(samples=4, choose="feedback", prm=f"{tmp_path / 'r.py'}:grade")
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evolve": stage.model_dump()}})
    assert Difficulty(tiny_folder, None, stage, config).measure([problem("even"), problem("odd")]) == [pytest.approx(2 / 3), None]
