"""Where rewards are placed, and what the reward function does with odd answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_models.process import StepScores
from rlef.config import ModelSection, RandomInit
from rlef.records import Problem, problem_id
from rlef.rl.functions import GradeFunction
from rlef.rl.reward import STEP_REWARDS, RewardFunction, Score, length_penalty, place_rewards
from rlef.rollout.base import Completion

MODEL = ModelSection(random=RandomInit())
ETA = 0.9


def score(steps, *, instruction=0.6, zeroed=None, slots=None):
    slots = tuple(range(1, 2 * len(steps), 2)) if slots is None else slots
    answer = 0.0 if zeroed else min(steps, default=0.0)
    return Score("", ("s",) * len(steps), tuple(steps), slots, instruction, answer, zeroed, "1", 0, 0)


def place(one, length, mode, finished=True, penalty=0.0):
    """With the penalty for an answer that was cut off."""
    rewards = place_rewards(one, length, mode=mode, clip_from=ETA)
    rewards[-1] -= length_penalty(length, finished, max_tokens=length, soft_tokens=0, soft_penalty=0.5, cut_off=penalty)
    return rewards


def test_17_totals():
    one = score([0.9, 0.4, 0.7])
    assert place(one, 7, "min_terminal") == pytest.approx([0, 0, 0, 0, 0, 0, 0.6 * 0.4])
    assert place(one, 7, "running_min_delta") == pytest.approx([0, -0.06, 0, -0.3, 0, 0, 0])
    assert sum(place(one, 7, "running_min_delta")) == pytest.approx(0.6 * (0.4 - 1))


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6), st.floats(0.05, 1), st.data())
def test_17_totals_of_any_steps(steps, instruction, data):
    """Whatever the number of steps (one too) and wherever they end, even in one token; and nothing is paid between slots."""
    slots = tuple(sorted(data.draw(st.lists(st.integers(0, 8), min_size=len(steps), max_size=len(steps)))))
    zeroed = data.draw(st.sampled_from([None, "no_answer"]))
    one = score(steps, instruction=instruction, slots=slots, zeroed=zeroed)
    answer = 0 if zeroed else min(steps)
    terminal, shaped = place(one, 9, "min_terminal"), place(one, 9, "running_min_delta")
    assert terminal[:-1] == [0.0] * 8 and terminal[-1] == pytest.approx(instruction * answer) == one.total
    assert sum(shaped) == pytest.approx(instruction * (answer - 1), abs=1e-12)
    assert all(value <= 0 for value in shaped) and all(shaped[place] == 0 for place in range(8) if place not in slots)


@pytest.mark.parametrize(
    "mode,rewards",
    [
        ("step_sum", [0.9, 0.4, 0.7]),
        ("step_clip", [0.0, -0.5, -0.2]),
        ("step_delta", [0.5, 0.4, 0.0]),
        ("running_min_delta", [-0.1, -0.5, 0.0]),
    ],
)
def test_17_step_rewards_by_hand(mode, rewards):
    one = score([0.9, 0.4, 0.7])
    placed = place(one, 7, mode)
    assert [placed[slot] for slot in one.slots] == pytest.approx([0.6 * reward for reward in rewards])
    assert sum(placed) == pytest.approx(0.6 * sum(rewards))
    assert STEP_REWARDS[mode]([], ETA) == []


def test_17_delta_still_has_a_steps_score_to_come_and_a_single_step_has_none():
    paid = STEP_REWARDS["step_delta"]([0.9, 0.4, 0.7, 0.2], ETA)
    to_come = [sum(paid[place:]) for place in range(4)]
    assert to_come == pytest.approx([0.9, 0.4, 0.7, 0.0]) and STEP_REWARDS["step_delta"]([0.8], ETA) == [0.0]
    assert STEP_REWARDS["step_delta"]([0.8, 0.3], ETA) == [0.8, 0.0]


def test_17_soft_min_is_near_the_least_and_falls_on_it():
    paid = STEP_REWARDS["soft_min"]([0.9, 0.2, 0.7], ETA)
    assert sum(paid) == pytest.approx(-0.59995, abs=1e-4) and paid[1] == pytest.approx(-0.6, abs=1e-3)
    parts = [2.718281828459045 ** (-value / 0.1) for value in (0.8, -0.6, 0.4)]
    assert paid[2] == pytest.approx(0.4 * parts[2] / sum(parts), rel=1e-6)


def test_17_two_steps_that_end_in_one_token_add_up():
    one = score([0.9, 0.4], slots=(2, 2))
    assert place(one, 3, "running_min_delta") == pytest.approx([0, 0, -0.36])


@pytest.mark.parametrize("mode", ["min_terminal", "running_min_delta", "step_clip", "step_delta"])
@pytest.mark.parametrize("where", [1, 2, 3])
def test_18_copies_of_a_good_step_cannot_raise_the_total(mode, where):
    """Inserted or appended: a sum over steps grows by each copy."""
    base = [0.9, 0.4, 0.7]
    padded = [*base[:where], *[0.99] * 20, *base[where:]]
    before, after = sum(place(score(base), 60, mode)), sum(place(score(padded), 60, mode))
    assert after == pytest.approx(before)
    assert sum(place(score(padded), 60, "step_sum")) == pytest.approx(sum(place(score(base), 60, "step_sum")) + 0.6 * 20 * 0.99)


def test_18_what_a_good_step_does_elsewhere():
    """Behind a single one Delta pays for it, and a Clip from above its score takes some for it; soft-min can be raised by it anywhere."""

    def total(mode, *steps, clip_from=ETA):
        return sum(STEP_REWARDS[mode](steps, clip_from))

    assert total("step_delta", 0.8) == 0 and total("step_delta", 0.8, 0.99) == pytest.approx(0.8)
    assert total("step_clip", 0.8, 0.99, clip_from=0.99) == pytest.approx(total("step_clip", 0.8, clip_from=0.99))
    assert total("step_clip", 0.8, 0.99, clip_from=1.0) == pytest.approx(total("step_clip", 0.8, clip_from=1.0) - 0.01)
    assert total("soft_min", 0.6, *[0.99] * 20, 0.6) > total("soft_min", 0.6, 0.6) < total("soft_min", 0.6, 0.6, *[0.99] * 20)


@pytest.mark.parametrize("mode,nothing", [("step_sum", 0.0), ("step_clip", -1.0), ("step_delta", 0.0), ("soft_min", -1.0)])
def test_16_what_is_zeroed_is_worth_as_little_as_the_mode_gives(mode, nothing):
    """So that no answer at all is never the best one."""
    assert sum(place(score([0.9, 0.4], zeroed="no_answer"), 8, mode)) == pytest.approx(0.6 * nothing)
    assert sum(place(score([], zeroed="no_answer", slots=()), 8, mode)) == pytest.approx(0.6 * nothing)
    assert sum(place(score([0.9, 0.8]), 8, mode)) > 0.6 * nothing


def test_16_the_soft_penalty_grows_over_the_last_allowed_tokens():
    ramp = {"max_tokens": 100, "soft_tokens": 20, "soft_penalty": 0.5, "cut_off": 0.1}
    lost = [length_penalty(length, True, **ramp) for length in (1, 80, 90, 100)]
    assert lost == pytest.approx([0.0, 0.0, 0.25, 0.5]) and length_penalty(100, False, **ramp) == pytest.approx(0.6)
    assert length_penalty(100, False, **(ramp | {"soft_tokens": 0})) == pytest.approx(0.1)


@pytest.mark.parametrize("mode,total", [("min_terminal", 0.0), ("running_min_delta", -0.6)])
def test_16_a_zeroed_answer_falls_to_nothing_on_its_last_token(mode, total):
    one = score([0.9, 0.4], zeroed="unfinished")
    rewards = place(one, 8, mode, finished=False, penalty=0.1)
    assert sum(rewards) == pytest.approx(total - 0.1)
    assert rewards[-1] == pytest.approx((-0.24 if mode == "running_min_delta" else 0) - 0.1)
    assert sum(place(score([], zeroed="no_answer", slots=()), 1, mode)) == pytest.approx(total)


@pytest.mark.parametrize("mode,total", [("min_terminal", 0.24), ("running_min_delta", -0.36)])
def test_16_the_penalty_is_for_the_cut_alone_and_is_taken_once(mode, total):
    """The cut-off alone decides, not what the answer is worth."""
    one = score([0.9, 0.4])
    assert sum(place(one, 5, mode, finished=True, penalty=0.1)) == pytest.approx(total)
    cut = place(one, 5, mode, finished=False, penalty=0.1)
    assert sum(cut) == pytest.approx(total - 0.1) and cut[:-1] == place(one, 5, mode, penalty=0.1)[:-1]


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


def test_16_any_stop_id_finishes_an_answer_and_is_no_part_of_its_text(tiny):
    """A stop id that is no EOS and no special token: its piece must not reach the PRM or the grader."""
    _, tokenizer = tiny
    (stop,) = tokenizer.encode("5", add_special_tokens=False)
    ids = (*tokenizer.encode("good\n#### 7", add_special_tokens=False), stop)
    prm = ScriptedPrm({})
    reward = RewardFunction(prm=prm, irm=None, tokenizer=tokenizer, model=MODEL, stops=(tokenizer.eos_token_id, stop))
    (one,) = reward.score([problem()], [Completion(ids, (0.0,) * len(ids), True)])
    assert one.text == "good\n#### 7" and one.extracted == "7" and one.zeroed is None and prm.calls[0][1] == [["good", "#### 7"]]
    assert one.slots[-1] == len(ids) - 1 and place(one, len(ids), "min_terminal")[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("mode,total", [("min_terminal", 0.0), ("running_min_delta", -0.5)])
def test_16_eos_alone_is_one_token_worth_nothing(tiny, mode, total):
    _, tokenizer = tiny
    prm = ScriptedPrm({})
    one = scored(tokenizer, "", prm=prm, irm=ScriptedIrm())
    assert one.zeroed == "no_answer" and one.slots == () and all(not steps for _, steps in prm.calls)  # the PRM is not asked
    assert place(one, 1, mode, penalty=0.1) == pytest.approx([total])  # finished: no penalty


def test_18_copies_of_a_step_in_the_text_do_not_pay(tiny):
    """From the text on: copies inside leave the total alone, copies after the answer line are not read at all."""
    _, tokenizer = tiny
    base, inside, after = (
        scored(tokenizer, text) for text in ("good\nbad\n#### 7", "good\n" * 21 + "bad\n#### 7", "good\nbad\n#### 7" + "\ngood" * 20)
    )
    assert inside.total == after.total == base.total == 0.1 and len(inside.steps) == 23 and len(after.steps) == 3
    assert inside.repeated_steps == 20 and after.steps_after_answer == 20


def test_a_solution_too_long_for_the_prm_is_a_failure_not_a_min_over_the_rest(tiny):
    _, tokenizer = tiny
    one = scored(tokenizer, "good\n#### 7", prm=ScriptedPrm({}, truncated=True))
    assert one.zeroed == "too_long" and one.answer == 0 and one.step_scores == ()


def test_an_outcome_model_pays_at_the_last_step(tiny):
    """Two steps and their one score: the same total, nothing where the first step ends."""

    class ScriptedOrm:
        def score(self, questions, steps, batch_size):
            return [StepScores((0.3,)) for _ in steps]

    _, tokenizer = tiny
    one, length = scored(tokenizer, "good\n#### 7", prm=ScriptedOrm()), len(complete(tokenizer, "good\n#### 7").tokens)
    assert one.steps == ("good", "#### 7") and one.step_scores == (0.3,) and one.slots == (length - 1,) and one.total == 0.3
    assert place(one, length, "min_terminal") == [0.0] * (length - 1) + [0.3]
    assert place(one, length, "running_min_delta") == pytest.approx([0.0] * (length - 1) + [-0.7])


def test_gold_answers_count_only_when_asked_for(tiny):
    _, tokenizer = tiny
    assert scored(tokenizer, "good\n#### 8").zeroed is None
    assert scored(tokenizer, "good\n#### 8", use_answers=True).zeroed == "wrong_answer"
    assert scored(tokenizer, "good\n#### 7.0", use_answers=True).zeroed is None


class MissingScores:
    """A PRM or an IRM that gives what it is told to."""

    def __init__(self, *given):
        self.given = list(given)

    def score(self, asked, *_):
        return self.given[: len(asked)]


NAN = float("nan")


@pytest.mark.parametrize(
    ("prm", "irm"),
    [
        (MissingScores(None), MissingScores(0.5)),
        (MissingScores(StepScores((0.9, NAN))), MissingScores(0.5)),
        (MissingScores(StepScores((0.9, 0.9))), MissingScores(None)),
        (MissingScores(StepScores((0.9, 0.9))), MissingScores(NAN)),
        (MissingScores(StepScores((), truncated=True)), MissingScores(None)),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_missing_factor_masks_and_is_no_score_of_0(tiny, prm, irm, finished):
    _, tokenizer = tiny
    one = scored(tokenizer, "good\n#### 7", prm=prm, irm=irm, finished=finished)
    assert one.masked and one.zeroed is None and one.given is None and one.step_scores == one.slots == () and one.total == 0
    assert one.text == "good\n#### 7" and one.steps == ("good", "#### 7") and one.extracted == "7"


def test_what_is_zeroed_is_not_masked_and_each_sample_is_masked_alone(tiny):
    _, tokenizer = tiny
    prm = MissingScores(StepScores((0.9, 0.8)), None, StepScores((), truncated=True))
    reward = RewardFunction(prm=prm, irm=None, tokenizer=tokenizer, model=MODEL, stops=(tokenizer.eos_token_id,))
    found = reward.score([problem()] * 4, [complete(tokenizer, text) for text in ("a\n#### 1", "b\n#### 2", "c\n#### 3", "")])
    assert [one.masked for one in found] == [False, True, False, False] and found[0].answer == 0.8
    assert [one.zeroed for one in found] == [None, None, "too_long", "no_answer"]


def test_a_users_function_is_given_the_answer_and_the_known_one_only_when_asked_for(tiny, tmp_path):
    _, tokenizer = tiny
    file = tmp_path / "r.py"
    file.write_text(
        "def grade(question, steps, answer, gold):\n    return [0.5 if gold is None else 0.75] * (len(steps) - 1) + [float(answer)]\n"
    )
    prm = GradeFunction(str(file), "grade")
    one = scored(tokenizer, "good\n#### 0.9", prm=prm)
    assert one.step_scores == (0.5, 0.9) and one.answer == 0.5 and len(one.slots) == 2
    assert scored(tokenizer, "good\n#### 0.9", prm=prm, use_answers=True).step_scores == (0.75, 0.9)
    file.write_text("def grade(question, steps, answer, gold):\n    return None if answer == '7' else 0.25\n")
    prm = GradeFunction(str(file), "grade")
    assert scored(tokenizer, "good\n#### 7", prm=prm).masked
    whole = scored(tokenizer, "good\n#### 8", prm=prm)
    assert whole.step_scores == (0.25,) and whole.slots == (len(complete(tokenizer, "good\n#### 8").tokens) - 1,) and whole.total == 0.25


@pytest.mark.parametrize("mode,right,wrong", [("min_terminal", 0.5, 0), ("running_min_delta", 0, -0.5), ("soft_min", 0.5, -0.5)])
def test_a_verifiable_prompt_is_paid_by_its_known_answer_alone(tiny, mode, right, wrong):
    _, tokenizer = tiny
    prm = ScriptedPrm({"bad": 0.1})
    reward = RewardFunction(
        prm=prm, irm=ScriptedIrm(), tokenizer=tokenizer, model=MODEL, stops=(tokenizer.eos_token_id,), use_answers=True, verifiable=1.0
    )
    texts = ["bad\n#### 7.0", "good\n#### 8", "good", "good\n#### 7"]
    found = reward.score([problem()] * 3 + [problem(None)], [complete(tokenizer, text) for text in texts])
    assert [one.answer for one in found] == [1, 0, 0, 0.9] and [one.zeroed for one in found] == [None, "wrong_answer", "no_answer", None]
    assert prm.calls == [(["q"], [["good", "#### 7"]])]  # of the one whose answer nobody knows
    for one, total in zip(found, (right, wrong, wrong), strict=False):
        assert sum(place(one, len(complete(tokenizer, one.text).tokens), mode)) == pytest.approx(total, abs=1e-3)


def test_the_share_of_verifiable_prompts_is_drawn_by_their_ids_and_grows_with_it(tiny):
    _, tokenizer = tiny
    problems = [Problem(id=problem_id(str(number)), question=str(number), answer="7") for number in range(400)]

    def asked(share, **options):
        prm = ScriptedPrm({})
        reward = RewardFunction(prm=prm, irm=None, tokenizer=tokenizer, model=MODEL, stops=(), verifiable=share, **options)
        reward.score(problems, [complete(tokenizer, "#### 7")] * 400)
        return set(prm.calls[0][0])

    tenth, half = asked(0.1, use_answers=True), asked(0.5, use_answers=True)
    assert half < tenth and 330 < len(tenth) < 385 and 150 < len(half) < 250 and tenth == asked(0.1, use_answers=True)
    assert len(asked(0.0, use_answers=True)) == len(asked(1.0)) == 400 and not asked(1.0, use_answers=True)


def test_the_instruction_model_sees_each_question_once(tiny):
    _, tokenizer = tiny
    irm = ScriptedIrm()
    reward = RewardFunction(prm=ScriptedPrm({}), irm=irm, tokenizer=tokenizer, model=MODEL, stops=(tokenizer.eos_token_id,))
    reward.score([problem()] * 3, [complete(tokenizer, "a\n#### 1")] * 3)
    assert irm.seen == ["q"]
    before = reward.score([problem()], [complete(tokenizer, "a\n#### 1")])
    reward.settle_instructions(["q", "r", "q"])
    assert reward.irm is None and irm.seen == ["q", "q", "q", "r"]
    assert reward.score([problem()], [complete(tokenizer, "a\n#### 1")]) == before and irm.seen == ["q", "q", "q", "r"]
    with pytest.raises(KeyError):
        reward.instruction_scores(["never named"])
