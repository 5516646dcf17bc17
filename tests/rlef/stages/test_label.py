"""The label stage: lists ranked by a chat judge, perturbed steps, and labels from a scripted policy's completions beside the exact judge's."""

from __future__ import annotations

import json
import re

import pytest

from reward_models.labels import at_threshold
from reward_models.records import SteppedSolution
from rlef import pipeline
from rlef.config import Config
from rlef.errors import UserError
from rlef.evolution import teachers
from rlef.evolution.chat import ChatTeacher
from rlef.models import load_tokenizer
from rlef.records import Problem, problem_id, write_jsonl
from rlef.rollout.base import Completion
from rlef.rollout.remote import ChatModel
from rlef.run_dir import RunDir
from rlef.stages import label, step_labels
from rlef.stages.context import StageContext
from rlef.stages.rankings import rank
from rlef.stages.shards import Shards
from rlef.symbolic import SymbolicTeacher, make_problems
from rlef.symbolic.teacher import judge
from rlef.tracking import Tracker

PROBLEMS = {problem.id: problem for problem in make_problems(80, depths=(1, 4), seed=0, split="train")}


def solution(problem, **changes):
    steps = (*problem.solution, f"#### {problem.answer}")
    fields = {"problem_id": problem.id, "question": problem.question, "steps": steps, "labels": (1.0,) * len(steps)}
    return SteppedSolution(**fields | {"labeller": "symbolic", "answer": problem.answer, "correct": True, "split": "train"} | changes)


def test_perturbed_steps_end_right_beginnings_of_training_solutions_and_are_judged(tmp_path):
    stage = {"kind": "label", "perturbed": 3}
    config = Config.model_validate({"model": {"random": {}}, "stages": {"label": stage}})
    ctx = StageContext("label", config, config.stages["label"], {}, tmp_path, Tracker.null())
    first, held_out, wrong, *others = PROBLEMS.values()
    broken = ("Nobody 1+1=3", *wrong.solution)
    rows = [
        *(solution(problem) for problem in (first, *others)),
        solution(held_out, split="held_out"),
        solution(wrong, steps=broken, labels=(0.0,) * len(broken), correct=False),
    ]
    made = step_labels._perturb(ctx, Shards(ctx), SymbolicTeacher(), rows, PROBLEMS)
    whole = {row.problem_id: row.steps for row in rows}
    assert len(made) > 2 * len(others) and len({(row.problem_id, row.steps) for row in made}) == len(made)
    assert not {held_out.id, wrong.id} & {row.problem_id for row in made}
    for row in made:
        last = len(row.steps) - 1
        assert row.steps[:last] == whole[row.problem_id][:last] and row.steps[last] != whole[row.problem_id][last]
        assert list(row.labels) == [float(label) for label in judge(PROBLEMS[row.problem_id], row.steps)] and set(row.labels[:last]) <= {
            1.0
        }
        assert row.labeller == "symbolic, perturbed" and row.correct is None and row.split == "train"
    assert sum(row.labels[-1] == 0.0 for row in made) > 0.9 * len(made)


class Policy:
    """Solves rightly where `right` says so of the noise key, else errs in the middle; half the completions of a right beginning are right."""

    def __init__(self, folder, right):
        self.tokenizer, self.right, self.solved = load_tokenizer(folder), right, {}

    def generate(self, requests, params, progress=None):
        return [Completion(tuple(self.tokenizer.encode("\n".join(self.lines(one, params)))), (), True) for one in requests]

    def lines(self, request, params):
        text = self.tokenizer.decode(request.prompt_ids)
        problem = next(one for one in PROBLEMS.values() if one.question in text)
        steps, sample = problem.solution, request.key[-1]
        if request.key[1] == step_labels.MONTE_CARLO:
            return [f"#### {0 if sample % 2 or 'Nobody' in text else problem.answer}"]
        self.solved[request.key] = params.temperature
        if self.right(request.key):
            return [*steps, f"#### {problem.answer}"]
        return [*steps[: len(steps) // 2], f"Nobody 1+1={sample + 3}", "#### 0"]


@pytest.fixture
def labelled(tiny_folder, tmp_path_factory, monkeypatch):
    """Settings of the label stage -> rows, counts and the temperature of each solution."""

    def run(teacher=None, right=lambda key: key[-1] % 3 != 0, problems=None, **settings):
        policy = Policy(tiny_folder, right)
        monkeypatch.setattr("rlef.rollout.hf.HFGenerator", lambda *_: policy)
        stage = {"kind": "label", "count": 20, "samples": 6, "completions": 4, **settings}
        config = Config.model_validate({"model": {"random": {}}, "stages": {"label": stage}})
        ctx = StageContext(
            "label", config, config.stages["label"], {"policy": tiny_folder}, tmp_path_factory.mktemp("label"), Tracker.null()
        )
        problems = problems or list(PROBLEMS.values())
        return *step_labels.judge(ctx, Shards(ctx), teacher or SymbolicTeacher(), problems, problems), policy.solved

    return run


def truth(row):
    return [float(good) for good in judge(PROBLEMS[row.problem_id], row.steps)]


@pytest.mark.parametrize("method,threshold", [("monte_carlo", None), ("monte_carlo", 0.0), ("monte_carlo", 0.5), ("bisection", None)])
def test_completions_label_and_the_record_keeps_what_was_measured(labelled, method, threshold):
    rows, counts, _ = labelled(method=method, threshold=threshold)
    assert len(rows) == 60 and counts == {"method": method, "without_steps": 0, "unjudged": 0}  # of a problem 1 right text, 2 wrong
    for row in rows:
        exact = truth(row)
        full = [good / 2 for good in exact[:-1]] + [exact[-1]]
        assert row.samples == 4 and row.labeller == method and row.seed == 0
        if method == "bisection":
            error = exact.index(0.0) if 0.0 in exact else len(exact)
            assert list(row.labels) == (exact[: error + 1] + [None] * len(exact))[: len(exact)]
            assert all(rate in (None, known) for rate, known in zip(row.rates, full, strict=True)) and row.rates[-1] is not None
        else:
            assert list(row.rates) == full
            assert list(row.labels) == (full if threshold is None else [float(rate > threshold) for rate in full])


class Judged(Exception):
    """What was to be judged."""


@pytest.mark.parametrize("left", [0, 2])
def test_where_no_problem_is_left_the_policy_solves_seeds(tmp_path, monkeypatch, left):
    problems = list(PROBLEMS.values())
    write_jsonl(tmp_path / "seeds.jsonl", problems[2:6])
    write_jsonl(tmp_path / "prompts.jsonl", problems[:left])

    def seen(ctx, shards, teacher, seeds, problems):
        raise Judged([problem.id for problem in problems])

    monkeypatch.setattr(label, "judge", seen)
    monkeypatch.setattr(label, "rank", lambda *_: ([], {}))
    config = Config.model_validate({"model": {"random": {}}, "stages": {"label": {"kind": "label"}}})
    inputs = {"problems": tmp_path, "prompts": tmp_path}
    with pytest.raises(Judged) as told:
        label.run(StageContext("label", config, config.stages["label"], inputs, tmp_path, Tracker.null()))
    assert told.value.args[0] == [problem.id for problem in (problems[:left] or problems[2:6])]


class Lenient(SymbolicTeacher):
    def judge_steps(self, problems, solutions, *, seed):
        return [[1.0] * (len(steps) - 1) + [None] for steps in solutions]


def test_consensus_drops_the_steps_that_the_judge_sees_otherwise(labelled):
    for method in ("monte_carlo", "bisection"):
        rows, counts, _ = labelled(method=method, consensus=True)
        assert counts["agreement"] == 1.0 and len(rows) == 60 and {row.labeller for row in rows} == {f"{method} and symbolic"}
        assert all(good in (given, None) for row in rows for good, given in zip(row.labels, truth(row), strict=True))
    rows, counts, _ = labelled(Lenient(), method="monte_carlo", consensus=True)
    sure, _, _ = labelled(method="monte_carlo", threshold=0.0)
    verdicts = [verdict for row in sure for verdict in row.labels[:-1]]
    assert counts["agreement"] == sum(verdicts) / len(verdicts) < 1
    assert counts["unjudged"] == sum(not any(row.labels) for row in rows) == sum(not any(row.labels) for row in sure) > 0
    assert all(given in (1.0, None) for row in rows for given in row.labels)
    with pytest.raises(ValueError, match="consensus"):
        labelled(method="judge", consensus=True)


def test_temperatures_take_turns(labelled):
    rows, _, solved = labelled(method="symbolic", temperatures=[0.5, 1.5], samples=3)
    assert len(solved) == 60 and sorted(solved.values()) == [0.5] * 30 + [1.5] * 30
    assert all({solved[other] for other in solved if other[2] == key[2]} == {0.5, 1.5} for key in solved)  # each problem has both
    alone, _, default = labelled(method="symbolic", samples=3)
    assert set(default.values()) == {1.0} == {row.temperature for row in alone}
    for row in rows:
        key = min(key for key in solved if key[2] == int(row.problem_id, 16) and (key[-1] % 3 != 0) == row.correct)
        assert row.temperature == solved[key]  # of equal texts the first is kept
    bare = [row.model_copy(update={"temperature": 1.0}) for row in rows]
    assert alone == bare  # in this policy temperature changes nothing, nor may the order of rows


@pytest.mark.parametrize("method", ["monte_carlo", "bisection", "calculator"])
@pytest.mark.parametrize("consensus", [False, True])
def test_rows_keep_every_verdict_so_that_another_threshold_needs_no_new_call(labelled, method, consensus):
    rows, _, _ = labelled(method=method, consensus=consensus, threshold=0.0)
    other, _, _ = labelled(method=method, consensus=consensus, threshold=0.6)
    assert [at_threshold(row, 0.0) for row in rows] == rows and [at_threshold(row, 0.6) for row in other] == other
    assert all((row.judged is not None) == consensus and (row.equations is not None) == (method == "calculator") for row in rows)
    assert rows != other
    if method != "bisection":  # which measures other beginnings where it holds them against another share
        assert [at_threshold(row, 0.6) for row in rows] == other


def test_exact_labels_come_from_arithmetic_and_the_answer_alone(labelled):
    rows, counts, _ = labelled(method="exact", perturbed=2)
    assert counts["unjudged"] == 0 and len(rows) == 60 and {row.labeller for row in rows} == {"exact"}
    for row in rows:
        known = truth(row)
        error = known.index(0.0) if 0.0 in known else None
        assert list(row.labels) == (known if error is None else [0.0 if place == error else None for place in range(len(known))])
        assert row.rates is None and row.samples is None and row.equations is not None
    with pytest.raises(UserError, match="needs problems with known answers"):
        labelled(method="exact", problems=[problem.model_copy(update={"answer": None}) for problem in PROBLEMS.values()])


def test_balance_drops_right_solutions_of_the_training_split_alone(labelled):
    some = {"method": "symbolic", "samples": 1, "right": lambda key: key[2] % 4 != 0}
    rows, counts, _ = labelled(**some)
    kept, balanced, _ = labelled(**some, balance=True)
    split = {name: [row.correct for row in rows if row.split == name] for name in ("train", "held_out")}
    assert 0 < split["train"].count(False) < split["train"].count(True) and "balanced_away" not in counts
    assert balanced["balanced_away"] == len(rows) - len(kept) == split["train"].count(True) - split["train"].count(False)
    train = [row.correct for row in kept if row.split == "train"]
    assert train.count(True) == train.count(False) == split["train"].count(False)
    assert [row.correct for row in kept if row.split == "held_out"] == split["held_out"]
    with pytest.raises(UserError, match="every training solution is right"):
        labelled(method="symbolic", balance=True, right=lambda key: True)


# --------------------------------------------------------------------------------------------- ranked lists

SEEDS = [Problem(id=problem_id(text), question=text) for text in (f"Seed {number}: how many?" for number in range(8))]


class Chat(ChatModel):
    """Evolves into texts that name their operation's template; scores what stands at a position by `score(position from 0, text)`."""

    name = "chat"

    def __init__(self, score):
        self.score, self.lists, self.alone, self.asked = score, 0, 0, []

    def complete(self, conversations, *, schema=None, **_):
        return [self.answer(messages[0]["content"], schema) for messages in conversations]

    def answer(self, text, schema):
        self.asked.append(text)
        if schema is None:
            return f"{text.split('.')[0][:60]} of {re.search('Seed .', text)[0]}"
        if "1" not in schema["properties"]:
            self.alone += 1
            return json.dumps(dict.fromkeys(schema["properties"], 3 + len(text) % 5))
        self.lists += 1
        versions = text.removesuffix("\n\nJSON:").split("\n\nVersion ")[1:]
        found = {number: self.score(place, versions[place]) for place, number in enumerate(schema["properties"])}
        return json.dumps(
            {number: dict.fromkeys(schema["properties"][number]["required"], value) for number, value in found.items() if value}
        )

    def expected_digit(self, conversations, opening):
        return None


@pytest.fixture
def ranked(tmp_path):
    """A judge and settings of the label stage -> the lists, what is known of the judge, and the rows of metrics.jsonl."""

    def run(chat, kind="openai", **settings):
        stages = {"label": {"kind": "label", "lists": 8, "list_size": 4, **settings}}
        teacher = {"kind": kind, "model": "m", "base_url": "http://127.0.0.1:9"}
        config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": stages})
        tracker = Tracker("label", tmp_path / "metrics.jsonl", quiet=True)
        ctx = StageContext("label", config, config.stages["label"], {}, tmp_path, tracker)
        lists, counts = rank(ctx, ChatTeacher(chat, config.model, temperature=0.7, max_tokens=64), SEEDS)
        return lists, counts["ranking"], [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    return run


def fair(place, text):
    return 1 + sum(map(ord, text.split(":", 1)[1])) % 9


def test_a_fair_judge_ranks_lists_in_two_orders_and_the_figures_say_so(ranked):
    lists, trust, metrics = ranked(chat := Chat(fair))
    assert chat.lists == 16 and chat.alone == 0 and len(lists) + trust["equal_lists"] == 8
    assert trust["orders"] == 2 and trust["flip_rate"] == 0 and trust["kendall_tau_b"] == pytest.approx(1) and trust["unscored"] == 0
    assert trust["broken_orders"] == 0 and trust["position_means"] == pytest.approx(trust["position_means"][::-1])
    for row in lists:
        totals = [item.scores["definition"] for item in row.items]
        assert [item.rank for item in row.items] == [sorted(set(totals), reverse=True).index(total) for total in totals]
        assert row.items[0].recorded == {"difficulty": totals[0]}
    (logged,) = metrics
    assert (
        logged["label/flip_rate"] == 0
        and logged["label/kendall_tau_b"] == pytest.approx(1)
        and logged["label/tied_pairs"] == trust["tied_pairs"]
    )
    again = ranked(Chat(fair))
    assert (lists, trust) == again[:2]


def test_a_judge_of_positions_is_told_on_instead_of_trusted(ranked):
    with pytest.raises(UserError, match="0 of 8 lists; 100% of the pairs"):
        ranked(Chat(lambda place, text: 9 - place))


def test_what_a_judge_leaves_out_is_counted(ranked):
    lists, trust, _ = ranked(Chat(lambda place, text: fair(place, text) if "Seed 3" not in text and place else None), list_size=5)
    # What stands first in either order has no score there; of Seed 3 nothing has one.
    assert trust["broken_orders"] == 2 and trust["unscored"] == 5 + 7 * 2
    assert lists and all(len(row.items) == 3 and row.seed_id != SEEDS[3].id for row in lists)


@pytest.mark.parametrize("kind,settings,alone", [("openai", {"orders": 0}, True), ("hf", {}, True), ("hf", {"orders": 1}, False)])
def test_versions_are_judged_alone_where_the_config_or_the_kind_of_teacher_says_so(ranked, kind, settings, alone):
    lists, trust, _ = ranked(chat := Chat(fair), kind, **settings)
    assert bool(chat.alone) == alone and bool(chat.lists) == (not alone) and lists
    assert ("flip_rate" in trust) == (not alone) and trust["orders"] == settings.get("orders", 0)


def test_the_aspects_of_the_config_make_up_the_rank(ranked):
    lists, _, _ = ranked(Chat(fair), aspects=["difficulty", "precision"])
    assert all(
        item.scores.keys() == {"precision", "difficulty"} and item.recorded.keys() == {"definition", "integrity"} for item in lists[0].items
    )
    for aspects, teacher, word in (
        (["precision", "precision"], "openai", "twice"),
        (["difficulty"], "symbolic", "difficulty"),
        ([], "openai", "aspects"),
    ):
        with pytest.raises(ValueError, match=word):
            ranked(Chat(fair), teacher, aspects=aspects)


class Reached(Exception):
    pass


def test_lists_hold_versions_by_the_users_operations_and_a_change_of_them_redoes_the_stage(tmp_path, monkeypatch):
    def make(config, journal, operations_file):
        raise Reached(operations_file)

    monkeypatch.setattr(teachers, "make_teacher", make)
    write_jsonl(tmp_path / "seeds.jsonl", SEEDS)
    write_jsonl(tmp_path / "evolved.jsonl", SEEDS)
    file = tmp_path / "my.yaml"
    stages = {"evolve": {"kind": "evolve", "operations_file": str(file)}, "label": {"kind": "label"}}
    teacher = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9"}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": stages})
    ctx = StageContext("label", config, config.stages["label"], {"problems": tmp_path, "evolved": tmp_path}, tmp_path, Tracker.null())
    with pytest.raises(Reached, match=str(file)):
        label.run(ctx)
    prints = []
    for template in ("Mine: {question}", "Mine: {question}", "Ours: {question}"):
        file.write_text(f"math: {{up.mine: '{template}'}}")
        prints.append(pipeline.fingerprint(config, RunDir(tmp_path / "run"), "label", {}))
    assert prints[0] == prints[1] and pipeline.changed_keys(prints[0], prints[2]) == ["operations file"]


def test_the_operations_are_those_of_the_nearest_evolve_stage_before():
    stages = {"first": {"kind": "label"}, "evolve": {"kind": "evolve", "operations_file": "a"}, "label": {"kind": "label"}}
    stages |= {"again": {"kind": "evolve"}, "last": {"kind": "label"}}
    config = Config.model_validate({"model": {"random": {}}, "stages": stages})
    assert {name: config.operations_file(name) for name in stages} == {
        "first": None,
        "evolve": "a",
        "label": "a",
        "again": None,
        "last": None,
    }


def test_a_server_samples_solutions_and_completions_after_its_probe(labelled, tiny_folder, monkeypatch):
    made = []

    class Served(Policy):
        def __init__(self, url, folder, *, concurrency):
            super().__init__(folder, lambda key: key[-1] % 3 != 0)
            self.told, self.checked = (url, concurrency), None
            made.append(self)

        def check(self, model, prompt):
            self.checked = self.tokenizer.decode(prompt)
            assert not self.solved and model.config.model_type == "llama"

    monkeypatch.setattr("rlef.rollout.served.ServedGenerator", Served)
    own, counts, solved = labelled(method="monte_carlo")
    served, others, here = labelled(method="monte_carlo", server="http://here/v1", batch_size=7)
    assert (served, others) == (own, counts) and here == {} and len(solved) == 120
    (one,) = made
    assert one.told == ("http://here/v1", 7) and one.solved == solved and any(row.question in one.checked for row in own)
