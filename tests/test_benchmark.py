"""What the benchmark computes by value, and its measured jobs on the tiny model; nothing is installed."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [
    {
        "question": f"Ann has {a} pens and finds {b} more of them. She gives Ben half. How many has she?",
        "answer": f"She has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} pens.\nShe keeps half.\n#### {(a + b) // 2}",
    }
    for a in range(2, 10)
    for b in range(10, 14)
]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the others import it by this name
    spec.loader.exec_module(module)
    return module


tables, reward_models, job, _, benchmark = (script(f"benchmark{name}") for name in ("_tables", "_reward_models", "_job", "_ppo", ""))


def test_a_bar_is_for_the_median_and_the_spread_is_shown():
    line = tables.ratio("speed", [0.8, 0.95, 1.2], at_least=0.9)
    assert (line.median, line.least, line.most, line.met) == (0.95, 0.8, 1.2, True)
    assert "0.95" in str(line) and "0.80 .. 1.20" in str(line) and str(line).endswith(">= 0.90 met")
    assert tables.ratio("speed", [0.8, 0.89, 1.2], at_least=0.9).met is False
    assert tables.ratio("memory", [0.9, 1.01, 1.02], at_most=1.0).met is False and tables.ratio("memory", [1.0], at_most=1.0).met
    assert tables.ratio("padding", [1.5]).met is None


def test_each_repeat_is_held_against_its_neighbour_and_the_order_turns():
    asked = []
    found = tables.by_turns(3, lambda n: asked.append(f"a{n}") or n, lambda n: asked.append(f"b{n}") or 10 * n)
    assert asked == ["a0", "b0", "b1", "a1", "a2", "b2"] and found == [[0, 1, 2], [0, 10, 20]]
    runs = [{"seconds": 2.0, "slots": 30, "real": 20}, {"seconds": 4.0, "slots": 20, "real": 20}]
    assert tables.speeds(runs, 20) == [10.0, 5.0] and tables.padding(runs) == [1.5, 1.0]
    assert tables.over([10.0, 5.0], [5.0, 10.0]) == [2.0, 0.5]


def test_a_changed_solution_ends_at_the_one_digit_that_is_another():
    steps = ["She has 12 pens.", "She keeps half.", "#### 6"]
    for seed in range(20):
        wrong = reward_models.changed(steps, random.Random(seed))
        last = len(wrong) - 1
        assert wrong[:last] == steps[:last] and last != 1
        assert [one != other for one, other in zip(wrong[last], steps[last], strict=True)].count(True) == 1
    assert reward_models.changed(["no number"], random.Random(0)) is None


def test_half_of_the_questions_keep_their_gold_solution():
    rows = reward_models.solutions(LINES, 0)
    assert rows == reward_models.solutions(LINES, 0) and rows != reward_models.solutions(LINES, 1)
    assert len({row["question"] for row in rows}) == len(rows) == len(LINES)
    for number, row in enumerate(rows):
        assert row["labels"] == [1.0] * (len(row["steps"]) - number % 2) + [0.0] * (number % 2)
    assert rows[0]["steps"] == ["She has 2+10=12 pens.", "She keeps half.", "#### 6"]
    both = reward_models.solutions(LINES, 0, both=True)
    assert both[::4] == rows[::2]
    assert [row["question"] for row in both[::2]] == [row["question"] for row in both[1::2]]


def test_lists_have_six_versions_and_solutions_as_many_steps_as_asked():
    lists = reward_models.ranked_lists(LINES, 0)
    assert all([item["rank"] for item in one["items"]] == list(range(6)) for one in lists)
    assert all(one["items"][0]["text"] == line["question"] for one, line in zip(lists, LINES, strict=True))
    words = [sum(len(one["items"][rank]["text"].split()) for one in lists) for rank in range(6)]
    assert words == sorted(words, reverse=True)
    assert [len(row["steps"]) for row in reward_models.with_steps(LINES, 5, 8)] == [5] * 8


@pytest.fixture
def bench(tiny_folder, tmp_path):
    scale = reward_models.Scale(16, 8, 256, 1e-3, 16, 1, 4, 4, 4, 1)
    model = reward_models.prepare_model("smollm2", tmp_path, str(tiny_folder), LINES)
    return reward_models.Bench("small", model, scale, tmp_path / "out", "no python", 1, LINES)


def test_questions_with_a_solution_that_is_too_long_are_left_out_whole(bench):
    rows = reward_models.solutions(bench.lines[:8], 0, both=True)
    lengths = [len(one["input_ids"]) for one in bench.ids(rows)]
    bench.scale = reward_models.replace(bench.scale, max_length=max(lengths) - 1)
    kept, ids = bench.fitting(rows, 8)
    assert len(kept) == len(ids) == 8 and max(len(one["input_ids"]) for one in ids) < max(lengths)
    assert [row["question"] for row in kept[::2]] == [row["question"] for row in kept[1::2]]
    assert all(one["labels"][-1] == row["labels"][-1] and set(one["labels"]) <= {-100, 0, 1} for row, one in zip(kept, ids, strict=True))
    with pytest.raises(SystemExit, match="larger file"):
        bench.fitting(rows, 100)


@pytest.fixture
def here(monkeypatch, bench):
    """Jobs run in this process, and come back with what they were."""
    done = []

    def measure(python, one, folder):
        folder.mkdir(parents=True, exist_ok=True)
        done.append(one | {"python": python})
        return job.JOBS[one["kind"]](one | {"out": str(folder)})

    monkeypatch.setattr(reward_models, "measure", measure)
    return done


def test_both_sides_of_the_instruction_models_are_fed_the_same_items(bench, here):
    table = bench.irm()
    ours, theirs, anchored = here
    assert [one["kind"] for one in here] == ["irm_ours", "irm_trl", "irm_ours"] and anchored["settings"]["cross_seed_weight"] > 0
    assert len(job.rows_of(theirs["rows"])) == 4 * 15 and theirs["arguments"]["gradient_accumulation_steps"] == 60 // 6
    assert theirs["arguments"]["per_device_train_batch_size"] * 2 == ours["options"]["micro_batch_size"] * 6
    assert table.lines[0].median > 1 and table.lines[0].bar == ">= 2.50"


def test_the_clock_counts_every_token_once_and_sees_memory(bench, here):
    rows, ids = bench.fitting(reward_models.solutions(bench.lines, 0), 16)
    at, _ = bench.files("prm", rows, ids)
    found = bench.train_ours("prm", at, 8, 4, memory=True)
    assert found["real"] == sum(len(one["input_ids"]) for one in ids) <= found["slots"] and found["seconds"] > 0 and found["peak_bytes"] > 0
    assert not (bench.out / "prm" / "metrics.json").exists()  # what follows training was left out


def test_scoring_and_one_forward_a_prefix_agree(bench, here):
    found = bench.run(
        "scoring", "scoring", rows=reward_models.write(bench.out / "s", reward_models.with_steps(LINES, 3, 2)), batch_size=2, repeats=1
    )
    assert found["most_off"] < 1e-5 and 1 < found["token_ratio"] < 3


def test_a_two_class_model_is_judged_beside_ours(bench, here):
    from transformers import AutoModelForTokenClassification

    rows, ids = bench.fitting(reward_models.solutions(bench.lines, 0), 16)
    bench.train_ours("ours", bench.files("auroc", rows, ids)[0], 8, 4, keep=True)
    theirs = bench.out / "theirs"
    AutoModelForTokenClassification.from_pretrained(bench.model, num_labels=2).save_pretrained(theirs)
    bench.tokenizer.save_pretrained(theirs)
    for own_layout in (False, True):
        table = bench.judged([[str(bench.out / "ours"), str(theirs)]], "here", own_layout=own_layout)
        ours, other, difference = table.lines
        assert difference.median == pytest.approx(ours.median - other.median) and difference.bar == "0 in it"
        assert difference.met == (difference.most >= 0)


def test_a_bar_that_is_not_met_ends_with_one(tmp_path, monkeypatch, capsys):
    class Stub:
        def __init__(self, name, model, scale, *rest):
            self.scale = scale

        def memory(self):
            return tables.Table("memory", [tables.ratio("memory", [2.0], at_most=1.0)], ["10 MiB"])

        def irm(self):
            return tables.Table("irm", [tables.ratio("lists", [3.0] * self.scale.repeats, at_least=2.5)])

    monkeypatch.setattr(benchmark, "Bench", Stub)
    monkeypatch.setattr(benchmark, "prepare_model", lambda *_: tmp_path)
    monkeypatch.setattr(benchmark, "peer_environment", lambda *_: "python")
    math = tmp_path / "math.jsonl"
    math.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    command = ["reward_models", str(math), "--quick", "--folder", str(tmp_path), "--out", str(tmp_path), "--parts"]
    assert benchmark.main([*command, "irm"]) == 0 and benchmark.main([*command, "irm", "memory"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [line["met"] for line in said["lines"]] == [True, False] and said["notes"]["memory"] == ["10 MiB"]
    with pytest.raises(SystemExit) as end:
        benchmark.main(["reward_models", str(tmp_path / "gone")])
    assert end.value.code == 2 and "no such file" in capsys.readouterr().err
