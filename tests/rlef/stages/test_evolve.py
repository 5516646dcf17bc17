"""The evolve stage: what joins the pool, what is set aside with its rule, and what is reported beside the test it repeats."""

from __future__ import annotations

import pytest

from rlef.config import Config, ModelSection, RandomInit
from rlef.evolution import teachers
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.operations import read_operations
from rlef.records import Contamination, Eliminated, Problem, problem_id, read_jsonl, write_jsonl
from rlef.rollout.journal import Answer
from rlef.rollout.remote import ChatModel
from rlef.stages import evolve
from rlef.stages.context import StageContext
from rlef.symbolic import make_problems
from rlef.tracking import Tracker

TEST = "Grace picks 14 pears on Monday. Will picks twice as many as she does and gives 3 of them to his aunt. How many pears do they have left?"
RENUMBERED = (
    "Ivan picks 9 pears on Monday. Mary picks 4 times as many as he does and gives 5 of them to her aunt. How many pears do they have left?"
)
NEW = "A tram has 6 cars of 30 seats. How many seats has it?"
ANSWERS = {
    "seed 0": (TEST.replace("Grace", "Ivan").replace("Will", "Mary"), "held_out_text"),
    "seed 1": (RENUMBERED, None),
    "seed 2": ("A tram has 6 cars.", "no_question"),
    "seed 3": (NEW, None),
    "seed 4": (NEW.upper(), "exact_duplicate"),
    "seed 5": ("Write nothing but the changed problem. A bus has 9 seats. How many seats have 4?", "leaked_prompt"),
}


class Scripted(ChatModel):
    name = "scripted"

    def complete(self, conversations, *, max_tokens, **_):
        asked = [messages[0]["content"] for messages in conversations]
        return ["no" if max_tokens == 4 else next(text for seed, (text, _) in ANSWERS.items() if seed in prompt) for prompt in asked]


def run(tmp_path, monkeypatch, **settings):
    """The stage over the scripted teacher: its result and the rows it wrote."""
    teacher = ChatTeacher(Scripted(), ModelSection(random=RandomInit()), temperature=0.7, max_tokens=64)  # type: ignore[arg-type]
    monkeypatch.setattr(teachers, "make_teacher", lambda config, journal, file: teacher)
    seeds = [Problem(id=problem_id(seed), question=seed, domain="math") for seed in ANSWERS]
    stage = {"kind": "evolve", "rounds": 1, "require_question": True, "weights": {"up.add_step": 1}, **settings}
    return _run(tmp_path, seeds, [Problem(id=problem_id(TEST), question=TEST)], stage)


def _run(tmp_path, seeds, tests, stage):
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evolve": stage}})
    write_jsonl(tmp_path / "seeds.jsonl", seeds)
    write_jsonl(tmp_path / "held_out.jsonl", tests)
    result = evolve.run(StageContext("evolve", config, config.stages["evolve"], {"problems": tmp_path}, tmp_path, Tracker.null()))
    evolved = read_jsonl(tmp_path / "evolved.jsonl", Problem, may_be_empty=True)
    eliminated = read_jsonl(tmp_path / "eliminated.jsonl", Eliminated, may_be_empty=True)
    return result, evolved, eliminated, read_jsonl(tmp_path / "contamination.jsonl", Contamination, may_be_empty=True)


@pytest.mark.parametrize("drop", [False, True])
def test_every_child_is_kept_or_set_aside_with_its_rule(tmp_path, monkeypatch, drop):
    result, evolved, eliminated, leaks = run(tmp_path, monkeypatch, drop_renumbered=drop)
    expected = {text: rule for text, rule in ANSWERS.values() if rule} | ({RENUMBERED: "held_out_renumbered"} if drop else {})
    # Of two equal texts the first keeps its place; which one that is hangs on the drawn order of the parents.
    assert {row.problem.question.upper(): row.rule for row in eliminated} == {text.upper(): rule for text, rule in expected.items()}
    assert len(evolved) + len(eliminated) == len(ANSWERS) == result["made"]
    assert {(leak.test, leak.evolved, leak.rule, leak.dropped) for leak in leaks} == {
        (TEST, ANSWERS["seed 0"][0], "held_out_text", True),
        (TEST, RENUMBERED, "held_out_renumbered", drop),
    }
    assert all(leak.evolved_id == problem_id(leak.evolved) and leak.test_id == problem_id(TEST) and leak.ratio > 0.7 for leak in leaks)
    assert result["renumbered"] == (not drop)
    details = {row.rule: row.detail for row in eliminated}
    assert details["held_out_text"] == problem_id(TEST) and details["exact_duplicate"] in {one.id for one in evolved}


def test_a_question_is_asked_for_where_the_config_says_so_and_of_math_alone(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, require_question=False)[0]["eliminated"].get("no_question") is None
    general = [Problem(id=problem_id("seed 2"), question="seed 2", domain="general")]
    stage = {"kind": "evolve", "rounds": 1, "require_question": True, "weights": {"up": 1}}
    assert [one.question for one in _run(tmp_path, general, [Problem(id="t", question=TEST)], stage)[1]] == ["A tram has 6 cars."]


class Lengths:
    """A policy for which a problem is the harder the more steps it has."""

    def __init__(self):
        self.seen = []

    def measure(self, problems, progress=None):
        self.seen += [one.id for one in problems]
        return [{1: 1.0, 2: 0.5, 3: 0.5}.get(one.depth or 0, 0.0) for one in problems]


def symbolic(tmp_path, monkeypatch, difficulty, inputs=None, **stage):
    monkeypatch.setattr(evolve, "_difficulty", lambda ctx: difficulty)
    settings = {"kind": "evolve", "rounds": 2, "choose": "feedback", "per_round": 80, **stage}
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evolve": settings}})
    tmp_path.mkdir(exist_ok=True)
    write_jsonl(tmp_path / "seeds.jsonl", make_problems(60, depths=(1, 4), seed=0, split="train"))
    write_jsonl(tmp_path / "held_out.jsonl", make_problems(4, depths=(1, 3), seed=0, split="held_out"))
    sources = {"problems": tmp_path} | (inputs or {})
    result = evolve.run(StageContext("evolve", config, config.stages["evolve"], sources, tmp_path, Tracker.null()))
    evolved = read_jsonl(tmp_path / "evolved.jsonl", Problem, may_be_empty=True)
    return result, evolved, read_jsonl(tmp_path / "eliminated.jsonl", Eliminated, may_be_empty=True)


def test_feedback_chooses_the_line_and_keeps_the_band(tmp_path, monkeypatch):
    policy = Lengths()
    result, evolved, eliminated = symbolic(tmp_path, monkeypatch, policy)
    outside = [row for row in eliminated if row.rule == evolve.OUTSIDE]
    assert {one.depth for one in evolved} == {2, 3} and {one.pass_rate for one in evolved} == {0.5}
    assert {row.problem.depth for row in outside}.isdisjoint({2, 3}) and {row.detail for row in outside} == {"0.000", "1.000"}
    assert result["made"] == 160 == len(evolved) + len(eliminated) + result["eliminated"].get("no_answer", 0)
    # What was drawn went up from one step, down from four, into breadth between.
    every = {one.id: one for one in [*make_problems(60, depths=(1, 4), seed=0, split="train"), *evolved, *(row.problem for row in outside)]}
    lines = {
        (every[one.lineage.parent].depth, one.lineage.operation.split(".")[0]) for one in [*evolved, *(row.problem for row in outside)]
    }
    assert lines >= {(1, "up"), (4, "down"), (2, "breadth")}
    assert all(line == ("up" if depth == 1 else "breadth" if depth in (2, 3) else "down") for depth, line in lines)
    assert len(policy.seen) == len(set(policy.seen))  # nothing is measured twice
    assert set(result["rounds"]) == {"1", "2"} and 0 < result["rounds"]["1"]["in_band"] <= 1


def test_a_pool_goes_on_where_the_last_stage_ended(tmp_path, monkeypatch):
    _, first, dropped = symbolic(tmp_path / "one", monkeypatch, Lengths())
    outside = [row.problem for row in dropped if row.rule == evolve.OUTSIDE]
    assert evolve.read_pool(tmp_path / "one") == [*first, *outside]
    # Without a policy what comes with a pass rate is a parent, and nothing is thrown away for a rate that nobody measured.
    _, second, eliminated = symbolic(tmp_path / "two", monkeypatch, None, {"pool": tmp_path / "one"})
    assert {one.lineage.parent for one in second} <= {one.id for one in [*first, *outside, *second]}
    assert {one.lineage.round for one in second} == {3, 4} and not any(row.rule == evolve.OUTSIDE for row in eliminated)
    assert {one.question for one in second}.isdisjoint({one.question for one in [*first, *outside]})
    third = symbolic(tmp_path / "three", monkeypatch, Lengths(), {"pool": tmp_path / "one"}, keep_outside=True)[1]
    assert {one.depth for one in third} > {2, 3}


def test_what_was_cut_off_is_no_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "answers", lambda self, asked, **kw: [Answer(text, "length") for text in self.complete(asked, **kw)])
    result, evolved, eliminated, _ = run(tmp_path, monkeypatch)
    assert not evolved and result["eliminated"] == {"cut_off": len(ANSWERS)} and len(eliminated) == len(ANSWERS)


def test_flawed_symbolic_prompts_reach_rl(tmp_path):
    seeds = make_problems(60, depths=(1, 3), seed=0, split="train")
    tests = make_problems(40, depths=(1, 3), seed=0, split="held_out")
    _, evolved, eliminated, leaks = _run(tmp_path, seeds, tests, {"kind": "evolve", "rounds": 2})
    assert any("?" not in one.question for one in evolved) and not any(row.rule == "no_question" for row in eliminated)
    assert {leak.evolved_id for leak in leaks} == {row.problem.id for row in eliminated if row.rule.startswith("held_out")}


def test_the_embedding_model_drops_what_lies_near(tmp_path, monkeypatch, tiny_folder):
    result = run(tmp_path, monkeypatch, embedding_model=str(tiny_folder), embedding_threshold=0.0001)[0]
    # All but what elimination and the text rules took, the renumbered one too.
    assert result["eliminated"]["held_out_neighbour"] == 3 and result["renumbered"] == result["kept"] == 0


def test_the_stage_asks_by_the_users_file(tmp_path):
    (tmp_path / "my.yaml").write_text("general: {up.mine: 'Mine: {question}'}")
    teacher = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9"}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": {"evolve": {"kind": "evolve"}}})
    made = teachers.make_teacher(config, None, str(tmp_path / "my.yaml"))
    assert isinstance(made, ChatTeacher) and made.templates["general"].keys() - read_operations()["general"].keys() == {"up.mine"}
