"""The method stage: it finds the better template, reports what fresh parents say, and evolve asks by what it found."""

from __future__ import annotations

import random

import pytest
import yaml

from rlef.cli import main
from rlef.config import Config
from rlef.errors import UserError
from rlef.evolution import teachers
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.operations import read_operations
from rlef.load_config import load_config
from rlef.pipeline import fingerprint, resolve_all
from rlef.records import MethodCandidate, Problem, problem_id, read_jsonl, write_jsonl
from rlef.rollout.remote import ChatModel
from rlef.run_dir import RunDir
from rlef.stages import evolve, method
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

POOR = "Change this. {question}"
SEEDS = [f"Shop {number} has 12 red pens and sells {number} of them each day. How many are left?" for number in range(60)]
SETTINGS = {"operations": ["math.up.add_step"], "steps": 4, "candidates": 3, "batch": 6, "development": 20, "fresh": 20, "patience": 2}


class Chat(ChatModel):
    """A child asks something where its template says so, else in a share of cases. `proposals`: what the optimiser writes in turn."""

    name = "fake"

    def __init__(self, proposals, asks=0.0):
        self.proposals, self.asks, self.seen = list(proposals), asks, []

    def complete(self, conversations, *, temperature, max_tokens, seed, schema=None):
        texts = [messages[0]["content"] for messages in conversations]
        self.seen += [(text, seed + place if temperature else 0) for place, text in enumerate(texts)]
        return [self.answer(text, seed + place if temperature else 0) for place, text in enumerate(texts)]

    def answer(self, text, seed):
        if text.startswith("Do these two"):
            return "No"
        if text.startswith("With the template"):
            return "They ask nothing."
        if text.startswith("Below are"):
            return self.proposals.pop(0)
        shop = next((shop for shop in SEEDS if shop in text), None)
        if shop is None:
            return "#### 7"
        asks = "end with a question" in text or random.Random(f"{seed}/{text}").random() < self.asks
        return shop.replace("How many", "Two break. How many" if asks else "Two break. So many").replace("?", "?" if asks else ".")


def run(folder, chat, *, temperature=0.7, seeds=SEEDS, **settings):
    stage = {"kind": "method", **SETTINGS, **settings}
    teacher = {"kind": "openai", "model": "fake", "base_url": "http://127.0.0.1:9", "temperature": temperature}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": {"method": stage}})
    write_jsonl(folder / "seeds.jsonl", [Problem(id=problem_id(seed), question=seed) for seed in seeds])
    templates = read_operations()
    templates["math"]["up.add_step"] = POOR
    made = ChatTeacher(chat, config.model, temperature=temperature, max_tokens=64, templates=templates)
    context = StageContext("method", config, config.stages["method"], {"problems": folder}, folder, Tracker.null())
    return method.improve(context, made), list(read_jsonl(folder / "history.jsonl", MethodCandidate, may_be_empty=True))


GOOD = "Change this and end with a question. {question}"


def test_the_better_template_takes_the_place_and_all_versions_stay(tmp_path):
    chat = Chat(["Mend this. {question}", "{question}", GOOD, "Change this. Like so: " + SEEDS[0] + SEEDS[1] + " {question}"])
    chat.proposals[3:] = []  # one step: after it nothing fails, and nothing is proposed
    result, history = run(tmp_path, chat)
    assert (result["failure_rate_before"], result["failure_rate_after"]) == (1.0, 0.0) and result["fresh_parents"]
    assert result["difference"]["mean"] == -1.0 and result["before"]["failures"] == {"no_question": 20}
    assert (result["steps"], result["candidates"], result["kept"], result["best"]) == (3, 3, 1, 2)
    assert result["not_kept"] == {"not_a_template": 1, "not_better": 1}
    rows = {row.template: row for row in history}
    assert rows["{question}"].number is None and rows["{question}"].n is None
    assert rows[GOOD].model_dump(include={"operation", "step", "number", "parent", "analysis", "kept", "n", "failures", "failure_rate"}) == {
        "operation": "math.up.add_step", "step": 1, "number": 2, "parent": 0, "analysis": "They ask nothing.", "kept": True,
        "n": 20, "failures": {}, "failure_rate": 0.0,
    }  # fmt: skip
    assert rows["Mend this. {question}"].failures == {"no_question": 20} and rows["Mend this. {question}"].ci95[0] > 0.8
    assert rows[GOOD].incumbent_rate == 1.0 and rows[GOOD].difference["ci95"] == [-1.0, -1.0]
    versions = [read_operations(tmp_path / "versions" / f"{number}.yaml")["math"]["up.add_step"] for number in range(3)]
    assert versions == [POOR, "Mend this. {question}", GOOD]
    assert read_operations(tmp_path / "operations.yaml") == read_operations(tmp_path / "versions" / "2.yaml")


def test_candidates_meet_the_same_parents_and_noise_and_uses_of_seeds_do_not_mix(tmp_path):
    chat = Chat(["Mend this. {question}", GOOD])
    run(tmp_path, chat, candidates=2, steps=1)
    asked = {
        head: {(text.removeprefix(head), seed) for text, seed in chat.seen if text.startswith(head)}
        for head in ("Change this. ", "Mend this. ", "Change this and end with a question. ")
    }
    old, bad, good = asked.values()
    assert len(bad) == 20 and bad < good and bad < old and len(old) == 6 + 20 + 20  # batch, development, fresh
    fresh = good - bad
    batch = old - good
    assert len(fresh) == 20 and len(batch) == 6 and len({text for text, _ in old}) == 46


def test_a_lucky_winner_is_found_out_on_fresh_parents(tmp_path):
    seeds = SEEDS[:26]
    chat = Chat([f"Change this, way {number}. {{question}}" for number in range(100)], asks=0.5)
    result, history = run(tmp_path, chat, seeds=seeds, candidates=8, steps=3, patience=3, fresh=400)
    won = [row for row in history if row.kept]
    assert won and won[-1].failure_rate < 0.4 and not result["fresh_parents"]  # all are as good as the first: half fail
    low, high = result["after"]["ci95"]
    assert result["failure_rate_after"] > won[-1].failure_rate and low < 0.5 < high


def test_it_says_which_seeds_are_lacking(tmp_path):
    with pytest.raises(UserError, match=r"25 seeds of domain math; batch \+ development = 6 \+ 20"):
        run(tmp_path, Chat([]), seeds=SEEDS[:25])
    with pytest.raises(UserError, match="temperature 0"):
        run(tmp_path, Chat([]), seeds=SEEDS[:30], temperature=0.0)
    assert run(tmp_path, Chat([GOOD]), seeds=SEEDS[:46], temperature=0.0, candidates=1)[0]["fresh_parents"]


def test_evolve_asks_by_what_was_found(tmp_path, monkeypatch):
    found = tmp_path / "found"
    chat = Chat([GOOD])
    run(found, chat, candidates=1)
    used = []

    def make(config, journal, file):
        used.append(file)
        return ChatTeacher(chat, config.model, temperature=0.7, max_tokens=64, templates=read_operations(file))

    monkeypatch.setattr(teachers, "make_teacher", make)
    stage = {"kind": "evolve", "rounds": 1, "weights": {"up.add_step": 1}, "require_question": True}
    config = Config.model_validate({"model": {"random": {}}, "stages": {"evolve": stage}})
    write_jsonl(tmp_path / "seeds.jsonl", [Problem(id=problem_id(seed), question=seed) for seed in SEEDS])
    write_jsonl(tmp_path / "held_out.jsonl", [Problem(id="t", question="Ten trams meet nine carts, three boats and a bear?")])
    result = evolve.run(
        StageContext("evolve", config, config.stages["evolve"], {"problems": tmp_path, "method": found}, tmp_path, Tracker.null())
    )
    assert used == [str(found / "operations.yaml")] and result["operations"] == {"up.add_step": result["kept"]} and result["kept"] > 0


TEACHER = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "What is 1+1?", "answer": "2"}\n')
    (tmp_path / "mine.yaml").write_text("math: {up.mine: 'Mine: {question}'}")

    def to_file(teacher=None, **stages):
        problems = {"source": "jsonl", "path": "rows.jsonl", "held_out_path": "rows.jsonl"}
        data = {"model": {"random": {}}, "teacher": teacher or TEACHER, "stages": {"problems": problems, **stages}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return "run.yaml"

    return to_file


@pytest.mark.parametrize(
    "stages,words",
    [
        ({"method": {"operations": ["math.up.add_stepp"]}}, ["stages.method: operations", "did you mean `math.up.add_step`"]),
        ({"method": {"operations_file": "gone.yaml"}}, ["stages.method.operations_file: gone.yaml: no such file"]),
        ({"method": {"operations": []}}, ["stages.method.operations"]),
        (
            {"method": {}, "evolve": {"operations_file": "mine.yaml"}},
            ["stages.evolve.operations_file", "come from method", "method to none"],
        ),
        ({"evolve": {"method": "problems"}}, ["stages.evolve.method", "kind problems"]),
        ({"method": {}, "evolve": {"weights": {"up.mine": 1}}}, ["stages.evolve", "up.mine"]),
        ({"evolve": {"method": "."}}, ["stages.evolve", "operations.yaml"]),
    ],
)
def test_mistakes_are_told_before_the_run(write, capsys, stages, words):
    assert main(["check", write(**stages)]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("fix:", *words)), shown


def test_the_symbolic_teacher_has_no_method(write, capsys):
    file = write({"kind": "symbolic"}, problems={}, method={})
    assert main(["check", file]) == 2
    assert "stages.method: the symbolic teacher has no templates" in capsys.readouterr().err


def test_evolve_takes_the_nearest_method_or_none_and_is_redone_with_it(write, capsys):
    stages = {"method": {"operations_file": "mine.yaml"}, "evolve": {"weights": {"up.mine": 1}}}
    file = write(**stages)
    assert main(["check", file]) == 0 and "method <- method" in capsys.readouterr().out
    config = load_config(file)
    assert "input method" in fingerprint(config, RunDir("runs/run"), "evolve", resolve_all(config)["evolve"])
    alone = load_config(write(method={}, evolve={"method": "none", "operations_file": "mine.yaml"}))
    without = load_config(write(evolve={"operations_file": "mine.yaml"}))
    prints = [fingerprint(one, RunDir("runs/run"), "evolve", resolve_all(one)["evolve"]) for one in (alone, without)]
    assert prints[0] == prints[1] and not any("method" in key for key in prints[0])


def test_whoever_evolves_after_it_asks_by_its_templates(tmp_path):
    (tmp_path / "my.yaml").write_text("general: {up.mine: 'Mine: {question}'}")
    stages = {
        "problems": {},
        "method": {},
        "evolve": {},
        "respond": {},
        "sft": {},
        "label": {},
        "irm": {},
        "prm": {},
        "ppo": {"fresh_every": 5},
    }
    data = {name: {"kind": name, **settings} for name, settings in stages.items()}
    teacher = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9"}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": data})
    inputs = resolve_all(config)
    assert (inputs["evolve"]["method"], inputs["label"]["templates"], inputs["ppo"]["method"]) == ("method",) * 3
    for stage, key in (("evolve", "method"), ("label", "templates")):
        found = StageContext(stage, config, config.stages[stage], {key: tmp_path}, tmp_path, Tracker.null())
        assert found.operations_file == str(tmp_path / "operations.yaml")
    data["evolve"] |= {"method": "none", "operations_file": str(tmp_path / "my.yaml")}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": data})
    alone = StageContext("label", config, config.stages["label"], {}, tmp_path, Tracker.null())
    assert alone.operations_file == str(tmp_path / "my.yaml")


@pytest.mark.parametrize("settings,method", [({"method": "none"}, None), ({"method": "found"}, "found"), ({"method": "method"}, "method")])
def test_label_and_fresh_rounds_follow_the_evolve_stage_and_not_the_nearest_method(tmp_path, monkeypatch, settings, method):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found").mkdir()
    names = ("problems", "method", "method_2", "evolve", "respond", "sft", "label", "irm", "prm")
    stages = {name: {"kind": name.removesuffix("_2")} for name in names} | {"ppo": {"kind": "ppo", "fresh_every": 5}}
    config = Config.model_validate(
        {"model": {"random": {}}, "teacher": TEACHER, "stages": stages | {"evolve": {"kind": "evolve", **settings}}}
    )
    inputs = resolve_all(config)
    assert [inputs[stage].get(key) for stage, key in (("evolve", "method"), ("label", "templates"), ("ppo", "method"))] == [method] * 3
