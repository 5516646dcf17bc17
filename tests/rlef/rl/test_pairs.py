"""Which samples become pairs: whole answers, and single steps after the same right ones."""

from __future__ import annotations

import pytest

from rlef.records import Problem, problem_id
from rlef.rl.pairs import Pair, best_samples, first_error, reward_pairs, step_pairs, wrong_steps
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion

PROMPT = (100, 101)


def sample(scores, tokens=None, *, question="q", text=None, slots=None, zeroed=None, index=0):
    """An answer of two tokens a step, `tokens` counted on from 1 where none are given; its steps are a, b, c, ..."""
    tokens = tuple(range(1, 2 * len(scores) + 1)) if tokens is None else tokens
    slots = tuple(range(1, len(tokens), 2)) if slots is None else slots
    steps = tuple("abcdefgh"[: len(slots)])
    answer = 0.0 if zeroed else min(scores)
    score = Score(text or str((scores, tokens)), steps, tuple(scores), slots, 0.5, answer, zeroed, "1", 0, 0)
    prompt = Prompt(Problem(id=problem_id(question), question=question), PROMPT, None)
    return Sample(prompt, index, Completion(tokens, (0.0,) * len(tokens), zeroed != "unfinished"), score)


RULES = {"min_margin": 0.3, "max_length_ratio": 2.0}


def test_best_against_worst_and_each_reason_for_none():
    best, worst = sample([0.9]), sample([0.2])
    pairs, left_out = reward_pairs([worst, sample([0.5]), best], **RULES)
    assert pairs == [Pair(best, worst)] and left_out == {}
    assert pairs[0].prompt_ids == PROMPT and pairs[0].chosen_ids == (1, 2) and pairs[0].reward(worst) == 0.2
    samples = [
        *(sample([0.9], question="tie", text=text) for text in "xy"),
        *(sample([value], question="same text", text="x") for value in (0.9, 0.1)),
        *(sample([value], question="margin") for value in (0.9, 0.7)),
        *(sample(scores, question="length") for scores in ([0.9], [0.1] * 3)),
        *(sample([value], question="unfinished", zeroed="unfinished") for value in (0.9, 0.1)),
    ]
    assert reward_pairs(samples, **RULES) == ([], {"tie": 2, "margin": 1, "length": 1, "unfinished": 1})
    assert reward_pairs(samples[:2], min_margin=0.0, max_length_ratio=2.0) == ([], {"tie": 1})


def test_the_first_step_under_the_threshold_is_the_wrong_one():
    assert first_error(sample([0.9, 0.4, 0.1]).score, 0.5) == 1
    assert first_error(sample([0.9, 0.5]).score, 0.5) is None
    assert first_error(sample([0.1], slots=(1, 3), tokens=(1, 2, 3, 4)).score, 0.5) is None  # one score for two steps: an outcome model


def test_a_prompt_gives_its_surest_wrong_step():
    samples = [sample([0.9, 0.4]), sample([0.8, 0.9, 0.1]), sample([0.9], question="right")]
    assert wrong_steps(samples, threshold=0.5) == ([(samples[1], 2)], 1)
    merged = sample([0.9, 0.2], slots=(1, 1), tokens=(1, 2))  # one token closes both steps
    assert wrong_steps([merged], threshold=0.5) == ([], 1)


def test_step_pairs_share_the_prefix_and_differ_in_the_next_step():
    wrong = sample([0.9, 0.2, 0.1], (1, 2, 3, 4, 5, 6))
    better = sample([0.9, 0.8, 0.7], (1, 2, 13, 14, 15, 16))
    best = sample([0.9, 0.95], (1, 2, 23, 24))
    others = [
        sample([0.9, 0.97, 0.3], (1, 2, 33, 34, 35, 36)),  # its next step is best of all, but leads to a wrong one
        sample([0.9, 0.99], (1, 2, 43, 44), zeroed="unfinished"),
        sample([0.99], (1, 2)),  # no such step
        sample([0.9, 0.99], (1, 2, 53, 54), slots=(0, 3)),  # its first step ends elsewhere
    ]
    rules = RULES | {"threshold": 0.5}
    (pair,), left_out = step_pairs([(wrong, 1)], [[better, best, *others]], **rules)
    assert left_out == {} and pair == Pair(best, wrong, 1)
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == ((*PROMPT, 1, 2), (23, 24), (3, 4))
    assert (pair.reward(pair.chosen), pair.reward(pair.rejected)) == (0.95, 0.2)
    assert step_pairs([(wrong, 1)], [others], **rules) == ([], {"no_right_step": 1})
    assert step_pairs([(wrong, 1)], [[better]], **rules | {"min_margin": 0.7}) == ([], {"margin": 1})


def test_the_very_first_step_may_be_the_wrong_one():
    wrong, right = sample([0.1, 0.1]), sample([0.9], (7, 8))
    (pair,), _ = step_pairs([(wrong, 0)], [[right]], threshold=0.5, **RULES)
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == (PROMPT, (7, 8), (1, 2))


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


def test_best_of_n_takes_what_reaches_the_reward():
    samples = [sample([0.4]), sample([0.8]), sample([0.99], zeroed="unfinished"), sample([0.3], question="poor")]
    assert best_samples(samples, min_reward=0.5) == [samples[1]]
    with pytest.raises(ValueError, match="zip"):
        step_pairs([(samples[0], 0)], [], threshold=0.5, **RULES)
