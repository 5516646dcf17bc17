"""Skipping, redoing and resuming, with two small stages that count how often they ran."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from reward_models.errors import UserError as LabelError
from rlef import pipeline
from rlef.config import Config
from rlef.errors import UserError
from rlef.load_config import load_config, parse_config
from rlef.processes import launch
from rlef.run_dir import RunDir
from rlef.tracking import Tracker
from rlef.views.live import look

DATA = {
    "model": {"random": {}},
    "tracking": {"wandb": "disabled"},
    "stages": {"problems": {"seeds": 10}, "sft": {"data": "seeds"}, "report": {}},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(DATA, sort_keys=False))
    ran: list[str] = []
    broken: dict[str, BaseException] = {}

    def fake(config, run_dir, name, folder, inputs, kind, lead):
        ran.append(name)
        if name in broken:
            (folder / "half.txt").write_text("half")
            raise broken[name]
        (folder / "out.txt").write_text(config.stages[name].model_dump_json())
        return {"ran": name}

    monkeypatch.setattr(launch, "run_stage", fake)

    def go(*overrides, **options):
        ran.clear()
        done = pipeline.run(load_config("c.yaml", overrides), **options)
        return list(ran), done

    go.broken = broken
    go.ran = ran
    return go


def test_a_second_run_does_nothing(run):
    assert run()[0] == ["problems", "sft", "report"]
    assert run()[0] == []


def test_a_changed_key_redoes_its_stage_and_what_follows_and_keeps_the_old_folders(run, capsys):
    run()
    ran, done = run("sft.max_steps=5")
    assert ran == ["sft", "report"] and "sft.max_steps" in capsys.readouterr().out
    old = list((done.root / "superseded").glob("*/sft/out.txt"))
    assert len(old) == 1 and json.loads(old[0].read_text())["max_steps"] == 1000


def test_micro_batch_launch_and_tracking_change_nothing(run):
    run()
    assert run("sft.micro_batch_size=2", "tracking.project=other", "launch.device=cpu")[0] == []


def test_a_changed_seed_redoes_all(run):
    run()
    assert run("run.seed=1")[0] == ["problems", "sft", "report"]


def test_an_interrupted_stage_is_handed_its_own_folder_again(run):
    run.broken["sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run()
    run.broken.clear()
    ran, done = run()
    assert ran == ["sft", "report"] and (done.stage("sft") / "half.txt").exists()


def test_a_half_written_folder_of_other_settings_is_moved_away(run):
    run.broken["sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run()
    run.broken.clear()
    _, done = run("sft.max_steps=5")
    assert not (done.stage("sft") / "half.txt").exists() and list((done.root / "superseded").glob("*/sft/half.txt"))


@pytest.mark.parametrize(
    "error, said",
    [(UserError("no such data"), "no such data"), (LabelError("no labels"), "no labels"), (ValueError("odd\nlines"), "ValueError: odd")],
)
def test_why_a_stage_failed_is_shown_until_it_goes_on(run, error, said):
    run.broken["sft"] = error
    with pytest.raises(type(error)):
        run()
    seen = look(Path("runs/c"), time.time()).stages[1]
    assert (seen.name, seen.state, seen.said) == ("sft", "failed", said)
    run.broken.clear()
    _, done = run()
    assert look(done.root, time.time()).stages[1].state == "done" and not (done.stage("sft") / "error.txt").exists()


def test_paid_work_is_redone_only_with_yes(run):
    run("problems.paid=true")
    with pytest.raises(UserError, match="--yes"):
        run("problems.paid=true", "problems.seeds=11")
    assert run("problems.paid=true", "problems.seeds=11", yes=True)[0] == ["problems", "sft", "report"]


def test_from_and_only(run):
    run()
    assert run(start="sft")[0] == ["sft", "report"]
    assert run(only="report", start=None)[0] == []
    with pytest.raises(UserError, match="--from and --only"):
        run(only="report", start="sft")


def test_only_names_what_moves_with_a_changed_stage(run, capsys):
    run()
    capsys.readouterr()
    ran, done = run("problems.seeds=11", only="problems")
    assert ran == ["problems"] and "what follows from it: sft, report" in capsys.readouterr().out
    assert len(list((done.root / "superseded").glob("*/*"))) == 3


def test_every_stage_with_a_policy_is_evaluated_and_steps_need_a_process_model():
    names = ("problems", "sft", "label", "irm", "orm", "ppo", "dpo", "grpo", "rft", "evaluate")
    data = {"model": {"random": {}}, "stages": {name: {"kind": name} for name in names}}
    inputs = pipeline.resolve_all(parse_config(data, "c.yaml"))
    assert [name for name in inputs["evaluate"].values() if name not in ("problems", "orm")] == ["sft", "ppo", "dpo", "grpo", "rft"]
    assert inputs["grpo"] == inputs["dpo"] == {"init": "sft", "prompts": "problems", "irm": "irm", "prm": "orm"}
    data["stages"]["dpo"]["pairs"] = "steps"
    with pytest.raises(UserError, match="stages.dpo.pairs: steps needs a score for each step, and orm scores whole answers"):
        pipeline.resolve_all(parse_config(data, "c.yaml"))


def test_an_evaluation_says_how_it_ended():
    row = {"pass@1": 0.5, "gain": {"over": "sft", "mean": 0.15, "ci95": [0.1, 0.2]}}
    assert pipeline._outcomes({"sft": {"pass@1": 0.35}, "ppo": row, "n": 3}) == [
        "sft 35.0% right",
        "ppo 50.0% right, +15.0 points over sft (95 %: +10.0 to +20.0)",
    ]


def test_an_evolution_that_kept_nothing_says_by_which_rule_and_what_to_raise():
    cut, same = ({"made": 4, "kept": 0, "eliminated": {"refusal": 1, rule: 3}} for rule in ("cut_off", "exact_duplicate"))
    assert pipeline._outcomes(cut) == ["nothing was kept: 3 of 4 fell by cut_off; raise teacher.max_tokens"]
    assert pipeline._outcomes(same) == ["nothing was kept: 3 of 4 fell by exact_duplicate"]
    (line,) = pipeline._outcomes({"asked": 12, "solved": 0, "prompts": 0})
    assert line.startswith("all 12 problems were asked, none is left") and pipeline._outcomes({"asked": 12, "prompts": 1}) == []


def test_a_stage_alone_reads_its_problems_first_and_any_other_unfinished_input_is_named(run):
    stages = DATA["stages"] | {"label": {}}
    Path("c.yaml").write_text(yaml.safe_dump(DATA | {"stages": stages}, sort_keys=False))
    with pytest.raises(UserError, match="label: its input sft is not finished"):
        run(only="label")
    assert run.ran == [] and run(only="sft")[0] == ["problems", "sft"] and run(only="label")[0] == ["label"]


def test_rl_practises_on_what_the_nearest_stage_made():
    stages = {name: {"kind": name} for name in ("problems", "evolve", "respond", "sft", "label", "irm", "prm")}
    last = {"evolve_2": {"kind": "evolve", "choose": "feedback"}, "ppo": {"kind": "ppo"}}
    config = {"model": {"random": {}}, "stages": stages | last}
    assert pipeline.resolve_inputs(parse_config(config, "c.yaml"), "ppo")["prompts"] == "evolve_2"
    config = {"model": {"random": {}}, "stages": stages | {"ppo": {"kind": "ppo"}}}
    assert pipeline.resolve_inputs(parse_config(config, "c.yaml"), "ppo")["prompts"] == "respond"


def test_a_threshold_needs_rates():
    stages = {name: {"kind": name} for name in ("problems", "sft", "label")} | {"prm": {"kind": "prm", "threshold": 0.5}}
    for method, told in (("exact", True), ("judge", True), ("auto", True), ("monte_carlo", False)):
        config = parse_config({"model": {"random": {}}, "stages": stages | {"label": {"kind": "label", "method": method}}}, "c.yaml")
        if told:
            with pytest.raises(UserError, match="stages.prm.threshold: labels of method"):
                pipeline.resolve_inputs(config, "prm")
        else:
            assert pipeline.resolve_inputs(config, "prm")["labels"] == "label"
    stages["problems"] = {"kind": "problems", "source": "jsonl", "path": "answered.jsonl"}  # auto: by completions
    data = {"model": {"path": "."}, "teacher": {"kind": "hf"}, "stages": stages | {"label": {"kind": "label"}}}
    assert pipeline.resolve_inputs(parse_config(data, "c.yaml"), "prm")["labels"] == "label"


def test_summary_is_made_from_manifests(run):
    _, done = run()
    summary = json.loads(done.summary_file.read_text())
    assert summary["stages"]["sft"]["status"] == "done" and summary["stages"]["sft"]["seconds"] >= 0


def test_no_address_of_a_server_goes_to_the_tracker(tmp_path, monkeypatch):
    stages = {name: {"kind": name} for name in ("problems", "sft")} | {
        "label": {"kind": "label", "server": "http://user:word@inside:8000/v1"}
    }
    teacher = {"kind": "openai", "model": "m", "base_url": "http://user:word@inside:9000/v1"}
    config = parse_config({"model": {"random": {}}, "teacher": teacher, "tracking": {"wandb": "disabled"}, "stages": stages}, "test")
    told = []

    def opened(*arguments, **options):
        told.append(str(arguments))
        return Tracker.null()

    monkeypatch.setattr(launch.Tracker, "open", opened)
    monkeypatch.setattr("rlef.stages.label.run", lambda ctx: {})
    launch.call(config, RunDir(tmp_path), "label", tmp_path, {}, "rlef.stages.label:run")
    assert len(told) == 1 and "'aspects'" in told[0] and "inside" not in told[0]


GATED = {
    "model": {"random": {}},
    "tracking": {"wandb": "disabled"},
    "stages": {"problems": {"seeds": 10}, "sft": {"data": "seeds"}, "label": {}, "prm": {"require": {"step_auroc": 0.8}}, "ppo": {"irm": "none"}},
}  # fmt: skip


@pytest.fixture
def gated(run, tmp_path, monkeypatch):
    """The same with a PRM whose held-out step AUROC is 0.7."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GATED, sort_keys=False))
    fake = launch.run_stage

    def measured(config, run_dir, name, folder, inputs, kind, lead):
        result = fake(config, run_dir, name, folder, inputs, kind, lead)
        return (
            result | {"step_auroc": 0.7, "held_out_solutions": 118, "intervals": {"step_auroc": [0.66, 0.74]}} if name == "prm" else result
        )

    monkeypatch.setattr(launch, "run_stage", measured)
    return run


def test_a_stage_below_its_gate_stops_the_run_and_its_model_stays(gated):
    with pytest.raises(
        UserError, match="prm: below its gate on 118 held-out solutions\n.*step_auroc 0.700 .95 %: 0.660 to 0.740., .*least 0.8"
    ) as told:
        gated()
    assert gated.ran == ["problems", "sft", "label", "prm"] and "stages.prm.require" in told.value.fix
    root = Path("runs/c")
    assert (root / "prm" / "out.txt").is_file() and (root / "prm" / "manifest.json").is_file()
    assert json.loads((root / "summary.json").read_text())["reward_models"]["prm"]["step_auroc"] == 0.7


def test_a_gate_holds_for_a_finished_stage_and_a_lower_one_trains_nothing_again(gated):
    for options in ({}, {}, {"only": "prm"}, {"only": "ppo"}):
        with pytest.raises(UserError, match="prm: below its gate"):
            gated(**options)
    assert gated.ran == []
    assert gated("prm.require={step_auroc: 0.7}")[0] == ["ppo"]
    assert gated("prm.require={}")[0] == [] and gated("prm.require={step_auroc: 0.7, ece: 0.9}", only="problems")[0] == []
    with pytest.raises(UserError, match="ece could not be measured"):
        gated("prm.require={ece: 0.9}")
    assert gated("prm.require={}", "prm.eval_every=5")[0] == ["prm", "ppo"]  # how it is trained is another matter


def test_an_outcome_model_is_taken_where_it_is_named_or_alone():
    """Not because it stands nearer: an ablation added to a run must not become its reward."""
    before, ppo = {"problems": {}, "sft": {"data": "seeds"}, "label": {}}, {"prompts": "problems", "irm": "none"}
    for models, given, taken in [(("prm", "orm"), {}, "prm"), (("prm", "orm"), {"prm": "orm"}, "orm"), (("orm",), {}, "orm")]:
        stages = before | {name: {} for name in models} | {"ppo": ppo | given}
        named = {name: {"kind": name} | settings for name, settings in stages.items()}
        config = Config.model_validate({"model": {"random": {}}, "stages": named})
        assert pipeline.resolve_inputs(config, "ppo")["prm"] == taken
        assert config.stages["orm"].outcome
