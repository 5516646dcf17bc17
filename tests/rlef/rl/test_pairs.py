"""Who teaches by comparison and by imitation, and who is left out and why."""

from __future__ import annotations

from rlef.records import Problem, problem_id
from rlef.rl.pairs import best_samples, reward_pairs
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion


def group(question, *answers):
    """Samples of one prompt: r_A, or None for one that could not be judged; cut off where it is negative."""
    prompt = Prompt(Problem(id=problem_id(question), question=question), (1,), None)
    samples = []
    for index, r_a in enumerate(answers):
        score = Score(f"{question}{index}", ("s",), (), (), 1.0, abs(r_a or 0.0), None, "1", 0, 0, masked=r_a is None)
        samples.append(Sample(prompt, index, Completion((2, 3), (0.0, 0.0), r_a is None or r_a >= 0), score))
    return samples


def test_what_could_not_be_judged_is_neither_best_nor_worst():
    samples = [*group("a", 0.9, None, 0.4, -0.1), *group("b", None, 0.9, None), *group("c", -0.2, -0.1), *group("d", 0.5, 0.4)]
    pairs, left_out = reward_pairs(samples, min_margin=0.3, max_length_ratio=2.0)
    assert [(pair.chosen.index, pair.rejected.index) for pair in pairs] == [(0, 2)]
    assert left_out == {"masked": 1, "unfinished": 1, "margin": 1}


def test_the_best_answer_is_one_that_was_judged():
    samples = [*group("a", None, 0.4, 0.6), *group("b", None, None), *group("c", 0.2)]
    assert [(one.prompt.problem.question, one.index) for one in best_samples(samples, min_reward=0.0)] == [("a", 2), ("c", 0)]
