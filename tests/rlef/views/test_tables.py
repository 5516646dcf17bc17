"""What a stage that ran alone shows: every number of the issue's account, and an example of each kind."""

from __future__ import annotations

from reward_models.records import RankedItem, RankedList, SteppedSolution
from rlef.cli import main
from rlef.records import Eliminated, Lineage, Problem, problem_id, write_jsonl
from rlef.views.tables import evolve_table, label_table

SEED = "Ann has 3 pens. How many?"


def rows(table):
    """name -> value of the lines before the examples."""
    split = [line.rsplit(None, 1) for line in table.splitlines() if len(line.split()) > 1]
    return {name.strip(): value for name, value in split}


def test_evolve_counts_add_up_and_examples_name_their_rule(tmp_path):
    child = "Ann has 3 pens and buys 4. " * 40 + "How many?"
    lineage = Lineage(parent=problem_id(SEED), root=problem_id(SEED), operation="up.add_step", round=1, teacher="t")
    write_jsonl(tmp_path / "seeds.jsonl", [Problem(id=problem_id(SEED), question=SEED)])
    write_jsonl(tmp_path / "evolved.jsonl", [Problem(id=problem_id(child), question=child, lineage=lineage)])
    copy = Problem(id="c", question="A copy\nof it.", lineage=lineage)
    write_jsonl(tmp_path / "eliminated.jsonl", [Eliminated(problem=copy, rule="near_duplicate", detail="abc")])
    result = {
        "made": 9,
        "kept": 1,
        "eliminated": {"refusal": 2, "no_answer": 3, "near_duplicate": 1, "held_out_text": 2},
        "renumbered": 1,
        "rounds": {"1": {}, "2": {"pass_rate": 0.25, "in_band": 0.5}},
        "teacher": {
            "calls": 18,
            "journal_hits": 4,
            "prompt_tokens": 900,
            "completion_tokens": 80,
            "cost_usd": 0.0125,
            "run_paid_usd": None,
        },
    }
    table = evolve_table(result, tmp_path, [tmp_path])
    shown = rows(table)
    expected = {
        "made": "9",
        "kept": "1",
        "eliminated": "5",
        "refusal": "2",
        "duplicates": "1",
        "contaminated": "2",
        "held_out_text": "2",
        "round 2: in band": "0.5",
    }
    assert expected.items() <= shown.items()
    assert {"calls": "18", "journal hits": "4", "prompt tokens": "900", "cost usd": "0.0125"}.items() <= shown.items()
    assert (
        "kept, up.add_step, round 1" in table and SEED in table and "set aside, near_duplicate (abc)" in table and "A copy of it." in table
    )
    assert max(map(len, table.splitlines())) <= 100 and "run paid usd" not in table
    # Nothing kept, no seeds at hand: the table stands alone.
    for name in ("evolved", "eliminated"):
        write_jsonl(tmp_path / f"{name}.jsonl", [])
    assert evolve_table(result | {"kept": 0}, tmp_path, []).splitlines()[1].split() == ["kept", "0"]


def test_label_shows_a_list_and_a_judged_solution(tmp_path):
    items = (RankedItem(text="Bad?", rank=1), RankedItem(text="Good?", rank=0))
    write_jsonl(tmp_path / "rankings.jsonl", [RankedList(seed_id="s", items=items, labeller="t")])
    right = SteppedSolution(problem_id="p", question="Q?", steps=("a",), labels=(1.0,), labeller="t")
    wrong = SteppedSolution(problem_id="p", question="Q?", steps=("a", "b", "c"), labels=(1.0, 0.25, None), labeller="judge")
    write_jsonl(tmp_path / "steps.jsonl", [right, wrong])
    result = {
        "lists": 1,
        "right_steps": 0.5,
        "method": "judge",
        "agreement": None,
        "ranking": {"flip_rate": 0.25, "position_means": [1, 2]},
    }
    lines = label_table(result, tmp_path).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["lists", "1"],
        ["right", "steps", "0.5"],
        ["method", "judge"],
        ["flip", "rate", "0.25"],
    ]
    assert [line.split() for line in lines[4:7]] == [["ranked"], ["best", "Good?"], ["worst", "Bad?"]]
    assert [line.split() for line in lines[7:]] == [["judged", "by", "judge"], ["Q?"], ["1.00", "a"], ["0.25", "b"], ["?", "c"]]


def test_the_table_comes_with_the_stage_alone(tmp_path, capsys):
    common = ["tests/configs/tiny.yaml", f"run.dir={tmp_path / 'run'}", "tracking.wandb=disabled"]
    assert main(["problems", *common]) == 0 and "made" not in capsys.readouterr().out
    assert main(["evolve", *common]) == 0
    out = capsys.readouterr().out
    assert "no_information_gain" in out and "set aside, " in out and "kept, " in out
    assert main(["run", *common, "--only", "evolve"]) == 0 and "set aside, " in capsys.readouterr().out  # done before, shown again


def test_what_a_model_wrote_does_not_act_in_the_terminal(tmp_path):
    acting = "\x1b]52;c;cm0=\x07 \u202egnp \x9b31m[bold]\r"
    items = (RankedItem(text=acting, rank=1), RankedItem(text="Good?", rank=0))
    write_jsonl(tmp_path / "rankings.jsonl", [RankedList(seed_id="s", items=items, labeller=acting)])
    write_jsonl(
        tmp_path / "steps.jsonl", [SteppedSolution(problem_id="p", question=acting, steps=(acting,), labels=(0.0,), labeller=acting)]
    )
    said = label_table({"method": acting}, tmp_path)
    shown = "\\x1b]52;c;cm0=\\x07 \\u202egnp \\x9b31m[bold]"
    assert said.count(shown) == 5 and not any(character in said for character in "\x1b\x07\x9b\r\u202e")
