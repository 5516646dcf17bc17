"""The health of a run in words: each sentence by its figures, and guards by their curves."""

from __future__ import annotations

import json

import pytest
import yaml

from rlef.report.data import Run
from rlef.report.summary import findings, quarters
from rlef.report.training import guards
from rlef.run_dir import RunDir


def made(folder, curves, **stages):
    folder.mkdir(exist_ok=True)
    kinds = {"ppo": {"kind": "ppo", "iterations": 4}, "report": {"kind": "report"}} | {name: {"kind": name} for name in stages}
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": kinds}, sort_keys=False))
    for name, result in stages.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "manifest.json").write_text(json.dumps({"seconds": 60.0, "result": result}))
    rows = [
        {"stage": "ppo", "step": step + 1} | {name: values[step] for name, values in curves.items()}
        for step in range(len(next(iter(curves.values()), [])))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(folder)


def told(run, words):
    (found,) = [one for one in findings(run) if words in one.words]
    return found


@pytest.mark.parametrize(
    "reward,exact,judgement,words",
    [
        ([0.2] * 4 + [0.4] * 4, [0.5] * 4 + [0.6] * 4, "good", "Both rise"),
        ([0.2] * 4 + [0.4] * 4, [0.5] * 4 + [0.4] * 4, "bad", "fools the reward models"),
        ([0.3] * 8, [0.5] * 4 + [0.6] * 4, "watch", "does not rise"),
        ([0.2] * 3 + [0.4] * 4, [0.5] * 3 + [0.4] * 4, "plain", "Too few iterations"),
    ],
)
def test_a_reward_that_rises_alone_is_told_as_hacking(tmp_path, reward, exact, judgement, words):
    found = told(made(tmp_path, {"reward/total": reward, "monitor/exact_match": exact}), "mean reward")
    assert found.judgement == judgement and words in found.words and found.anchor == "stage-ppo"
    assert f"{reward[0]:.3g} in the first quarter, {reward[-1]:.3g} in the last" in found.words


def test_an_alarm_is_told_with_its_iteration_and_figures(tmp_path):
    run = made(tmp_path, {"rollout/length": [20.0, 30.0, 41.0, 30.0], "ppo/kl_per_token": [0.0, 0.01, 0.02, 0.03]})
    found = told(run, "alarm")
    assert found.judgement == "bad" and "since iteration 3" in found.words and "rollout/length 20, now 30" in found.words
    quiet = made(tmp_path, {"rollout/length": [20.0, 30.0, 40.0, 30.0], "ppo/kl_per_token": [0.0, 0.01, 0.02, 0.03]})
    found = told(quiet, "alarm")
    assert found.judgement == "good" and "none of 2 guards" in found.words and "now 0.03 (quiet at -0.02 to 0.5)" in found.words


def test_guards_take_their_limits_from_the_first_value():
    found = {one.name: one for one in guards({"rollout/length": [(1, 10.0), (2, 21.0)], "rollout/looping": [(1, 0.0), (2, 0.0)]})}
    assert set(found) == {"length", "looping"}
    length = found["length"]
    assert (length.low, length.high, length.first, length.now, length.since, length.moved) == (5.0, 20.0, 10.0, 21.0, 2, True)
    assert found["looping"].since is None and not found["looping"].moved


def test_reward_models_are_good_only_where_the_whole_interval_is_above_guessing(tmp_path):
    for low, judgement in ((0.6, "good"), (0.49, "watch")):
        result = {"step_auroc": 0.7, "intervals": {"step_auroc": [low, 0.8]}}
        assert told(made(tmp_path, {}, prm=result), "AUROC").judgement == judgement


def test_progress_names_what_is_begun_and_what_failed(tmp_path):
    run = made(tmp_path, {}, sft={"eval_loss": 0.25})
    assert told(run, "stages are done").words == "1 of 2 stages are done, in 60 s." and told(run, "0.25").anchor == "stage-sft"
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "started.json").write_text("{}")
    assert told(Run(tmp_path), "has begun").judgement == "watch"
    with RunDir(tmp_path).locked():
        assert told(Run(tmp_path), "is at work now").judgement == "watch"
    (tmp_path / "ppo" / "failure.json").write_text("{}")
    assert told(Run(tmp_path), "stopped with an error").judgement == "bad"


def test_of_two_stages_of_a_kind_each_sentence_says_which(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "irm_2").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"stages": {"irm_2": {"kind": "irm"}}}))
    (tmp_path / "run" / "irm_2" / "manifest.json").write_text(json.dumps({"seconds": 1.0, "result": {"pair_accuracy": 0.9}}))
    assert told(Run(tmp_path / "run"), "90.0%").words.startswith("irm_2: The instruction reward model")


def test_quarters_of_few_values_are_the_ends():
    assert quarters([(1, 2.0), (2, 5.0)]) == (2.0, 5.0)
    assert quarters([(step, float(step)) for step in range(8)]) == (0.5, 6.5)


@pytest.mark.parametrize("pairs,judgement", [(15, "watch"), (16, "good")])
def test_from_few_pairs_nothing_is_said_to_be_learned(tmp_path, pairs, judgement):
    found = told(made(tmp_path, {}, dpo={"reward_accuracy": 1.0, "pairs": pairs}), "pairs as the rewards do")
    assert found.judgement == judgement and ("raise dpo.count" in found.words) == (judgement == "watch")
