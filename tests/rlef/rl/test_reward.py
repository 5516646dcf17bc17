"""Where rewards are placed, and what the reward function does with odd answers."""

from __future__ import annotations

import pytest

from reward_models.process import StepScores
from rlef.config import ModelSection, RandomInit
from rlef.records import Problem, problem_id
from rlef.rl.reward import RewardFunction, Score, place_rewards
from rlef.rollout.base import Completion

MODEL = ModelSection(random=RandomInit())


def score(steps, *, instruction=0.6, zeroed=None, slots=None):
    slots = tuple(range(1, 2 * len(steps), 2)) if slots is None else slots
    answer = 0.0 if zeroed else min(steps, default=0.0)
    return Score("", ("s",) * len(steps), tuple(steps), slots, instruction, answer, zeroed, "1", 0, 0)


def place(one, length, mode, finished=True, penalty=0.0):
    return place_rewards(one, length, finished, mode=mode, missing_eos_penalty=penalty)


def test_17_totals():
    one = score([0.9, 0.4, 0.7])
    assert place(one, 7, "min_terminal") == pytest.approx([0, 0, 0, 0, 0, 0, 0.6 * 0.4])
    assert place(one, 7, "running_min_delta") == pytest.approx([0, -0.06, 0, -0.3, 0, 0, 0])
    assert sum(place(one, 7, "running_min_delta")) == pytest.approx(0.6 * (0.4 - 1))


def test_17_two_steps_that_end_in_one_token_add_up():
    one = score([0.9, 0.4], slots=(2, 2))
    assert place(one, 3, "running_min_delta") == pytest.approx([0, 0, -0.36])


def test_18_copies_of_a_good_step_cannot_raise_the_total():
    base = score([0.9, 0.4, 0.7])
    padded = score([0.9, *[0.99] * 20, 0.4, 0.7])
    for mode in ("min_terminal", "running_min_delta"):
        assert sum(place(padded, 60, mode)) == pytest.approx(sum(place(base, 60, mode)))


@pytest.mark.parametrize("mode,total", [("min_terminal", 0.0), ("running_min_delta", -0.6)])
def test_16_a_zeroed_answer_falls_to_nothing_on_its_last_token(mode, total):
    one = score([0.9, 0.4], zeroed="unfinished")
    rewards = place(one, 8, mode, finished=False, penalty=0.1)
    assert sum(rewards) == pytest.approx(total - 0.1)
    assert rewards[-1] == pytest.approx((-0.24 if mode == "running_min_delta" else 0) - 0.1)
    assert sum(place(score([], zeroed="no_answer", slots=()), 1, mode)) == pytest.approx(total)


class ScriptedPrm:
    """Scores a step by its text."""

    def __init__(self, scores, truncated=False):
        self.scores, self.truncated, self.calls = scores, truncated, []

    def score(self, questions, steps, batch_size):
        self.calls.append((list(questions), [list(row) for row in steps]))
        return [StepScores(scores=tuple(self.scores.get(step, 0.9) for step in row), truncated=self.truncated) for row in steps]


class ScriptedIrm:
    def __init__(self):
        self.seen = []

    def score(self, instructions):
        self.seen += instructions
        return [0.5] * len(instructions)


def problem(answer="7"):
    return Problem(id=problem_id("q"), question="q", answer=answer)


def complete(tokenizer, text, finished=True):
    ids = tokenizer.encode(text, add_special_tokens=False) + ([tokenizer.eos_token_id] if finished else [])
    return Completion(tuple(ids), (0.0,) * len(ids), finished)


def scored(tokenizer, text, *, prm=None, finished=True, irm=None, use_answers=False):
    reward = RewardFunction(
        prm=prm or ScriptedPrm({"bad": 0.1}),
        irm=irm,
        tokenizer=tokenizer,
        model=MODEL,
        stops=(tokenizer.eos_token_id,),
        use_answers=use_answers,
    )
    return reward.score([problem()], [complete(tokenizer, text, finished)])[0]


def test_the_product_and_its_parts(tiny):
    _, tokenizer = tiny
    irm = ScriptedIrm()
    one = scored(tokenizer, "good\nbad\n#### 7", irm=irm)
    assert one.step_scores == (0.9, 0.1, 0.9) and one.answer == 0.1 and one.instruction == 0.5 and one.total == pytest.approx(0.05)
    assert one.extracted == "7" and one.zeroed is None


def test_slots_are_causal(tiny):
    """A step's slot is the token that makes its end final: the delimiter's, or EOS for the unclosed last one."""
    _, tokenizer = tiny
    one = scored(tokenizer, "good\nbad\n#### 7")
    ids = complete(tokenizer, "good\nbad\n#### 7").tokens
    newlines = [index for index, token in enumerate(ids) if "\n" in tokenizer.decode([token])]
    assert list(one.slots) == [*newlines, len(ids) - 1]


def test_what_follows_the_answer_line_is_not_scored(tiny):
    _, tokenizer = tiny
    one = scored(tokenizer, "good\n#### 7\nbad\nbad")
    assert one.answer == 0.9 and one.steps_after_answer == 2 and len(one.slots) == 2


@pytest.mark.parametrize(
    "text,finished,reason", [("good\n#### 7", False, "unfinished"), ("good\nfine", True, "no_answer"), ("", True, "no_answer")]
)
def test_16_odd_answers_get_nothing(tiny, text, finished, reason):
    _, tokenizer = tiny
    one = scored(tokenizer, text or "", finished=finished)
    assert one.zeroed == reason and one.answer == 0


def test_a_solution_too_long_for_the_prm_is_a_failure_not_a_min_over_the_rest(tiny):
    _, tokenizer = tiny
    one = scored(tokenizer, "good\n#### 7", prm=ScriptedPrm({}, truncated=True))
    assert one.zeroed == "too_long" and one.answer == 0 and one.step_scores == ()


def test_gold_answers_count_only_when_asked_for(tiny):
    _, tokenizer = tiny
    assert scored(tokenizer, "good\n#### 8").zeroed is None
    assert scored(tokenizer, "good\n#### 8", use_answers=True).zeroed == "wrong_answer"
    assert scored(tokenizer, "good\n#### 7.0", use_answers=True).zeroed is None


def test_the_instruction_model_sees_each_question_once(tiny):
    _, tokenizer = tiny
    irm = ScriptedIrm()
    reward = RewardFunction(prm=ScriptedPrm({}), irm=irm, tokenizer=tokenizer, model=MODEL, stops=(tokenizer.eos_token_id,))
    reward.score([problem()] * 3, [complete(tokenizer, "a\n#### 1")] * 3)
    assert irm.seen == ["q"]
