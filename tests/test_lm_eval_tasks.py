"""The tasks of configs/lm_eval: problems, grades and choices by value; where lm-eval is installed, its figure against the run's own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from reward_models.process import StepScores
from rlef.config import Config
from rlef.records import Problem, write_jsonl
from rlef.run_dir import RunDir

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "lm_eval"


@pytest.fixture
def tasks(monkeypatch):
    """The file as lm-eval reads it, with what it takes from lm-eval."""
    registry: dict[str, type] = {}

    def register_filter(name):
        return lambda one: registry.setdefault(name, one)

    made = {name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.filter", "lm_eval.api.registry")}
    made["lm_eval.api.filter"].Filter = object
    made["lm_eval.api.registry"].filter_registry, made["lm_eval.api.registry"].register_filter = registry, register_filter
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    for _ in range(2):  # it is read more than once
        spec = importlib.util.spec_from_file_location("rlef_tasks", TASKS / "rlef_tasks.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert list(registry) == ["rlef_choice"]
    return module


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    model = {"random": {}, "prompt_template": "Q: {question}", "answer_marker": "so"}
    stages = {name: {"kind": name} for name in ("problems", "sft", "label", "prm")}
    made.create(Config.model_validate({"model": model, "stages": stages}).model_dump(mode="json"))
    rows = [Problem(id=str(number), question=f"{number}?", answer=str(number)) for number in range(5)]
    write_jsonl(made.start("problems", {}) / "held_out.jsonl", rows)
    made.start("prm", {})
    made.finish("prm", {}, 1.0, {})
    return made


def test_problems_are_the_runs_first_held_out_ones(tasks, run):
    rows = tasks.problems(str(run.root), count=2, version=1)["test"]
    assert list(rows) == [
        {"id": str(number), "question": f"{number}?", "prompt": f"Q: {number}?", "answer": str(number), "marker": "so", "delimiter": "\n",
         "prm": str(run.root / "prm" / "model")}
        for number in range(2)
    ]  # fmt: skip
    assert len(tasks.problems(str(run.root))["test"]) == 5
    assert tasks.problems(str(run.root), count=1, plain=True)["test"][0]["prompt"] == "Q: 0?\n"


@pytest.mark.parametrize("text,right", [("a\nso 7", 1.0), ("so 7.0", 1.0), ("so 8", 0.0), ("7", 0.0), ("", 0.0)])
def test_grades_are_those_of_the_one_grader(tasks, text, right):
    assert tasks.graded({"marker": "so", "answer": "7", "question": "?"}, [text]) == {"exact_match": right}


def test_the_filter_chooses_by_the_prm_and_scores_once(tasks, tmp_path, monkeypatch):
    calls = []

    class Prm:
        @classmethod
        def load(cls, folder):
            calls.append(folder)
            return cls()

        def score(self, questions, steps, batch_size):
            return [StepScores(tuple(int(step[-1]) / 10 for step in one)) for one in steps]

    monkeypatch.setattr(tasks, "ProcessRewardModel", Prm)
    docs = [{"question": "q", "prm": str(tmp_path), "marker": "####", "delimiter": "\n"}] * 2
    texts = [["a9\n#### 8", "a2\n#### 4", "a3\n#### 4"], ["1", "2", "3"]]
    made = {how: tasks.RlefChoice(how).apply(iter(texts), docs) for how in ("best_answer", "weighted_vote", "majority")}
    assert made == {"best_answer": [["#### 8"], [""]], "weighted_vote": [["#### 8"], [""]], "majority": [["#### 4"], [""]]}
    assert calls == [str(tmp_path)]


def test_what_the_tasks_name_is_there(tasks):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(tasks, node.value.removeprefix("rlef_tasks.")))
    read = {file.stem: yaml.load(file.read_text(), Loader) for file in TASKS.glob("*.yaml")}
    assert {name: one["task"] for name, one in read.items()} == {name: name for name in ("rlef", "rlef_best_of")}
    assert all(callable(one["custom_dataset"]) and callable(one["process_results"]) for one in read.values())
    used = [part for one in read["rlef_best_of"]["filter_list"] for part in one["filter"] if part["function"] == "rlef_choice"]
    assert {part["how"] for part in used} < set(tasks.Choice.__dataclass_fields__)


@pytest.mark.slow
def test_lm_eval_gives_the_runs_own_figure(tmp_path):
    pytest.importorskip("lm_eval")
    config, folder = yaml.safe_load((ROOT / "tests" / "configs" / "tiny.yaml").read_text()), tmp_path / "run"
    stages = {name: config["stages"][name] for name in ("problems", "sft", "evaluate")}
    stages["sft"] |= {"data": "seeds", "max_steps": 200}  # enough that some answers are right
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config | {"stages": stages}, sort_keys=False))
    subprocess.run([sys.executable, "-m", "rlef", "run", str(tmp_path / "tiny.yaml"), f"run.dir={folder}"], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "scripts/harness.py", str(folder)], check=True, capture_output=True, text=True, cwd=ROOT)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["problems"] == 20 and told["lm_eval"] == told["pass@1"] and told["other_words"] == told["graded_otherwise"] == 0
