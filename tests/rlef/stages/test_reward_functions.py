"""A user's Python function in a reward model's place: the config, what is redone when it changes, and stages that leave out what it masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlef import pipeline
from rlef.cli import main
from rlef.config import Config, DpoStage, PpoStage, RftStage, function_of
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.processes import launch
from rlef.records import Rollout, read_jsonl
from rlef.rl import scorers
from rlef.rl.functions import GradeFunction, RateFunction
from rlef.rl.losses import policy_loss
from rlef.run_dir import RunDir
from rlef.stages import dpo, ppo, rft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

STAGES = {
    "problems": {"seeds": 10},
    "sft": {"data": "seeds"},
    "evolve_2": {"kind": "evolve", "choose": "feedback", "prm": "r.py:grade"},
    "ppo": {"prompts": "problems", "irm": "r.py:rate", "prm": "r.py:grade"},
    "evaluate": {"prm": "r.py:grade"},
}
# Every second answer, by its text, cannot be judged.
HALF = "def grade(question, steps, answer, gold):\n    return None if sum(map(len, steps)) % 2 else 0.25\n"
NEVER = "def grade(question, steps, answer, gold):\n    return None\n"
RATE = "def rate(question):\n    return 0.5\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"model": {"random": {}}, "tracking": {"wandb": "disabled"}, "stages": STAGES}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    (tmp_path / "r.py").write_text(HALF + RATE)
    return lambda *overrides: load_config("c.yaml", overrides)


def test_a_function_stands_where_a_stage_could(config):
    read = config()
    assert (
        function_of(read.stages["ppo"].prm) == ("r.py", "grade") and function_of("prm") == function_of(None) == function_of(("a",)) is None
    )
    assert pipeline.resolve_inputs(read, "ppo") == {"init": "sft", "prompts": "problems"}
    assert "prm" not in pipeline.resolve_inputs(read, "evaluate").keys() | pipeline.resolve_inputs(read, "evolve_2").keys()
    pipeline.check_data(read)
    assert isinstance(scorers.process_scorer("r.py:grade", {}, "cpu"), GradeFunction)
    assert isinstance(scorers.instruction_scorer("r.py:rate", {}, "cpu"), RateFunction)
    assert Config.model_validate(json.loads(json.dumps(read.model_dump(mode="json")))) == read


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["ppo.prm=r.py"], "stages.ppo.prm: name a function of the Python file: rewards.py:grade"),
        (["ppo.prm=r.py:not-a-name"], "stages.ppo.prm: name a function of the Python file"),
        (["ppo.critic_init=prm"], "r.py:grade gives scores alone"),
        (["ppo.verifiable=0.1"], "stages.ppo.verifiable: needs use_answers: true"),
        (["ppo.verifiable=1.1"], "stages.ppo.verifiable"),
        (["ppo.verifiable=0.1", "ppo.use_answers=true", "ppo.reward_mode=step_delta"], "step_delta pays a single score nothing"),
    ],
)
def test_mistakes_in_the_config(config, overrides, told):
    with pytest.raises(UserError) as error:
        config(*overrides)
    assert told in str(error.value)


def test_check_shows_functions_and_finds_all_that_are_missing(config, capsys):
    assert main(["check", "c.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "irm <- r.py:rate, prm <- r.py:grade" in shown
    assert main(["check", "c.yaml", "ppo.prm=r.py:grad", "ppo.irm=no.py:rate", "evaluate.prm=r.py:rate"]) == 2
    told = capsys.readouterr().err
    assert "stages.ppo.prm: r.py: has no function grad; did you mean `grade`?" in told
    assert "stages.ppo.irm: no.py: cannot be read" in told and "stages.evaluate.prm: r.py, line 3: rate takes other parameters" in told
    assert not Path("runs").exists()


def test_the_files_contents_and_the_functions_name_count_and_not_its_place(config, monkeypatch, capsys):
    ran = []

    def fake(config, run, name, folder, inputs, kind, lead):
        ran.append(name)
        (folder / "out.txt").write_text("x")
        return {}

    monkeypatch.setattr(launch, "run_stage", fake)

    def run(*overrides):
        ran.clear()
        pipeline.run(config(*overrides))
        return list(ran)

    assert run() == ["problems", "sft", "evolve_2", "ppo", "evaluate"] and run() == []
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.py").write_text(Path("r.py").read_text())
    assert run("ppo.prm=elsewhere/mine.py:grade") == []
    capsys.readouterr()
    Path("elsewhere/mine.py").write_text(HALF + "# another\n" + RATE)
    assert run("ppo.prm=elsewhere/mine.py:grade") == ["ppo", "evaluate"] and "changed: function prm" in capsys.readouterr().out
    assert RunDir("runs/c").manifest("ppo").fingerprint["function irm"].startswith("rate ")


def context(folder, inputs, stage):
    config = Config.model_validate({"model": {"random": {}}, "stages": {stage.kind: stage.model_dump()}})
    folder.mkdir()
    tracker = Tracker(stage.kind, folder / "metrics.jsonl", quiet=True)
    return StageContext(stage.kind, config, stage, {name: inputs[name] for name in ("init", "prompts")}, folder, tracker)


def ppo_stage(file, **settings):
    base = {"iterations": 4, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_tokens": 12, "critic_warmup": 0, "minibatches": 4}
    return PpoStage(**(base | {"policy_lr": 1e-3, "irm": "none", "prm": f"{file}:grade"} | settings))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ppo_learns_from_what_a_function_judges_and_counts_what_it_masks(inputs, tmp_path):
    (tmp_path / "r.py").write_text(HALF + RATE)
    stage = ppo_stage(tmp_path / "r.py", iterations=2, irm=f"{tmp_path / 'r.py'}:rate")
    ppo.run(context(tmp_path / "half", inputs, stage))
    found = rows(tmp_path / "half")
    assert all(0 < row["reward/masked"] < 1 and row["reward/instruction"] == 0.5 and row["ppo/loss"] is not None for row in found)
    samples = list(read_jsonl(tmp_path / "half" / "rollouts.jsonl", Rollout))
    assert found[-1]["reward/masked"] == sum(sample.masked for sample in samples) / len(samples)
    assert found[-1]["rollout/length"] == pytest.approx(sum(s.length for s in samples if not s.masked) / sum(not s.masked for s in samples))
    assert all(sample.step_scores == () for sample in samples if sample.masked)
    start, trained = load_file(inputs["init"] / "model.safetensors"), load_file(tmp_path / "half" / "model" / "model.safetensors")
    assert any(not torch.equal(start[name], trained[name]) for name in trained)


def test_ppo_skips_an_iteration_without_a_judged_answer_and_stops_after_three_in_a_row(inputs, tmp_path, monkeypatch):
    # Two iterations of nothing, one of all, then nothing again: 8 answers an iteration, each asked once.
    text = "calls = 0\ndef grade(question, steps, answer, gold):\n    global calls\n    calls += 1\n    return 0.5 if 16 < calls <= 24 else None\n"
    (tmp_path / "r.py").write_text(text)
    monkeypatch.setattr("rlef.rl.reward.split_steps", one_step)
    with pytest.raises(UserError, match="ppo: in 3 iterations in a row not one answer could be judged, the last is 6"):
        ppo.run(context(tmp_path / "gaps", inputs, ppo_stage(tmp_path / "r.py", iterations=8, kl_target=0.5)))
    found = rows(tmp_path / "gaps")
    assert [row["reward/masked"] for row in found] == [1, 1, 0, 1, 1] and [row["optim/steps"] for row in found] == [0, 0, 4, 0, 0]
    assert [row["reward/total"] for row in found][:2] == [None, None] and found[0]["ppo/kl_coef"] == found[2]["ppo/kl_coef"] == 0.02
    assert [row["alerts"]["unjudged"].split(":")[0] for row in found if row["reward/masked"]] == [f"iteration {n}" for n in (1, 2, 4, 5)]
    assert not (tmp_path / "gaps" / "model").exists()


def one_step(text, delimiter):
    from reward_models.steps import split_steps

    return split_steps("a", delimiter)


@pytest.mark.parametrize(("module", "stage"), [(dpo, DpoStage), (rft, RftStage)])
def test_dpo_and_rft_tell_where_nothing_could_be_judged(inputs, tmp_path, module, stage):
    (tmp_path / "r.py").write_text(NEVER)
    settings = stage(count=2, samples_per_prompt=2, max_tokens=4, irm="none", prm=f"{tmp_path / 'r.py'}:grade")
    with pytest.raises(UserError, match="not one of 4 answers could be judged"):
        module.run(context(tmp_path / "out", inputs, settings))


def test_ppo_stops_after_three_iterations_of_which_no_gradient_was_finite(inputs, tmp_path, monkeypatch):
    (tmp_path / "r.py").write_text(HALF.replace("None if sum(map(len, steps)) % 2 else ", ""))

    def spoiled(*given, **named):
        loss, sums = policy_loss(*given, **named)
        return loss * float("nan"), sums

    monkeypatch.setattr("rlef.rl.update.policy_loss", spoiled)
    with pytest.raises(UserError, match="ppo: in 3 iterations in a row no gradient was finite, the last is 3"):
        ppo.run(context(tmp_path / "nan", inputs, ppo_stage(tmp_path / "r.py", iterations=8, critic_warmup=0)))
    found = rows(tmp_path / "nan")
    assert [row["optim/skipped_steps"] for row in found] == [row["optim/steps"] for row in found] == [4, 4]
