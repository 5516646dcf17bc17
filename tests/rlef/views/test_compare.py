"""Two runs beside each other: paired over shared problems, and everything that differs."""

from __future__ import annotations

import json

import pytest
import yaml

from rlef import cli
from rlef.errors import UserError
from rlef.records import Outcome, write_jsonl
from rlef.views.compare import measured, policy_differences, setting_differences, tables, verdict


def outcomes(**right):
    return [Outcome(problem_id=problem, text="t", right=bool(one), finished=True) for problem, one in right.items()]


def made(folder, policies, *, seconds=10.0, cost=None, iterations=20, versions=None):
    for name in ("evolve", "evaluate"):
        (folder / name).mkdir(parents=True)
    config = {
        "run": {"dir": str(folder), "seed": 0},
        "stages": {"evolve": {"kind": "evolve"}, "evaluate": {"kind": "evaluate"}, "ppo": {"kind": "ppo", "iterations": iterations}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"wandb": {}, "python": "3.11", "versions": versions or {"rlef": "1"}}))
    for name, result in (("evolve", {"teacher": {"cost_usd": cost}} if cost is not None else {}), ("evaluate", {})):
        (folder / name / "manifest.json").write_text(json.dumps({"fingerprint": {}, "files": {}, "seconds": seconds, "result": result}))
    (folder / "evaluate" / "results.json").write_text(json.dumps({policy: {} for policy in policies}))
    for policy, rows in policies.items():
        write_jsonl(folder / "evaluate" / f"samples_{policy}.jsonl", rows)
    return folder


def test_differences_are_paired_over_the_problems_that_both_evaluated():
    first = {"sft": outcomes(a=0, b=1, c=1, only=1), "gone": outcomes(a=1)}
    second = {"sft": outcomes(b=1, a=1, c=1, new=0), "elsewhere": outcomes(a=1)}
    (found,) = policy_differences(first, second)
    assert (found.policy, found.problems, found.alone) == ("sft", 3, 2)
    assert (found.first, found.second) == (2 / 3, 1.0) and found.gain["mean"] == pytest.approx(1 / 3)
    assert policy_differences({"sft": outcomes(a=1)}, {"sft": outcomes(b=1)}) == []


def test_the_interval_says_which_is_better():
    better = {f"p{number}": 1 for number in range(40)}
    (found,) = policy_differences({"x": outcomes(**dict.fromkeys(better, 0))}, {"x": outcomes(**better)})
    assert found.gain["ci95"] == [1.0, 1.0] and verdict(found.gain["ci95"]) == "better"
    assert verdict([-0.2, -0.1]) == "worse" and verdict([-0.1, 0.1]) == "not clear"


def test_settings_are_told_as_the_user_sets_them():
    first = {"run": {"dir": "a", "seed": 0}, "stages": {"ppo": {"lr": 1, "rollout": {"vllm": None}}, "dpo": {}}}
    second = {"run": {"dir": "b", "seed": 1}, "stages": {"ppo": {"lr": 2, "rollout": {"vllm": None}}}}
    assert setting_differences(first, second) == [("run.seed", "0", "1"), ("ppo.lr", "1", "2"), ("dpo", "{}", "–")]
    assert setting_differences(first, first) == []


def test_the_tables_hold_results_settings_versions_time_and_cost(tmp_path):
    first = measured(made(tmp_path / "one", {"sft": outcomes(a=0, b=1)}, cost=1.5))
    second = measured(made(tmp_path / "two", {"sft": outcomes(a=1, b=1)}, seconds=20.0, iterations=5, versions={"rlef": "2"}))
    results, settings, versions, spent = tables(first, second)
    assert results[2][0][:4] == ["sft", "2", "50.0%", "100.0%"] and results[2][0][4].startswith("+50.0 (")
    assert settings[2] == [["ppo.iterations", "20", "5"]] and versions[2] == [["rlef", "1", "2"]]
    assert spent[2] == [["evolve", "10", "20", "1.50", "–"], ["evaluate", "10", "20", "–", "–"], ["all", "20", "40", "1.50", "–"]]
    assert [title for title, _, _ in tables(first, first)] == ["right answers, 2 minus 1 in points", "time and cost"]


def test_the_command_prints_it_and_an_unfinished_run_compares_too(tmp_path, capsys):
    one, two = made(tmp_path / "one", {"sft": outcomes(a=0)}), made(tmp_path / "two", {}, iterations=5)
    assert cli.main(["compare", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "ppo.iterations" in said and "no policy was evaluated in both" in said


def test_what_is_no_run_is_one_message(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no config.yaml" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("stages: [a]")
    with pytest.raises(UserError, match="no stages"):
        measured(tmp_path)


def test_one_page_of_two_runs_has_their_comparison(tmp_path, capsys):
    one, two = made(tmp_path / "one", {"sft": outcomes(a=0)}), made(tmp_path / "two", {"sft": outcomes(a=1)}, iterations=5)
    for run in (one, two):
        (run / "evaluate" / "results.json").unlink()
    assert cli.main(["report", str(one), str(two)]) == 0
    page = (one / "comparison.html").read_text()
    assert "Runs compared" in page and "ppo.iterations" in page and not (one / "report.html").exists()
    assert cli.main(["report", str(one), str(two), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    assert cli.main(["report", str(one), str(tmp_path / "none")]) == 2 and "no such run directory" in capsys.readouterr().err
    assert cli.main(["report", str(one), "--out", str(tmp_path / "none" / "x.html")]) == 2
