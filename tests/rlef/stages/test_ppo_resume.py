"""25: PPO killed after a checkpoint and started again ends with bitwise the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from reward_models.config import ProcessModelConfig
from reward_models.process import SETTINGS
from rlef.config import Config, PpoStage
from rlef.rl.average import Average
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker


def context(folder, inputs, **settings):
    base = {
        "iterations": 4,
        "prompts_per_iteration": 4,
        "samples_per_prompt": 2,
        "max_tokens": 12,
        "critic_warmup": 1,
        "minibatches": 2,
        "policy_lr": 1e-3,
        "kl_target": 0.5,
        "kl_horizon": 20,
    }
    stage = PpoStage(**(base | settings))
    config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": stage.model_dump()}})
    folder.mkdir(exist_ok=True)
    tracker = Tracker("ppo", folder / "metrics.jsonl", quiet=True)
    return StageContext("ppo", config, stage, inputs, folder, tracker)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"average": 0.5}, {"lora": {"rank": 4}, "average": 0.5}, {"shared_trunk": True}])
def test_25_resume_is_bitwise(inputs, tmp_path, monkeypatch, settings):
    settings |= {"save_every": 2}
    ppo.run(context(tmp_path / "straight", inputs, **settings))

    real = ppo.Checkpoints.write

    def killed(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(ppo.Checkpoints, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(context(tmp_path / "killed", inputs, **settings))
    monkeypatch.setattr(ppo.Checkpoints, "write", real)
    ppo.run(context(tmp_path / "killed", inputs, **settings))
    straight, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "killed"))
    assert all((straight[name] == resumed[name]).all() for name in straight)

    def rows(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith(("time", "perf"))} for row in lines]

    assert len({row["ppo/kl_coef"] for row in rows("killed")}) > 2  # its state is in the checkpoint
    assert rows("straight") == rows("killed") and [row["step"] for row in rows("killed")] == [1, 2, 3, 4]
    assert (tmp_path / "killed" / "adapter").is_dir() == ("lora" in settings)


@pytest.mark.parametrize("mode", ["min_terminal", "running_min_delta"])
def test_both_reward_modes_run_and_leave_their_files(inputs, tmp_path, mode):
    folder = tmp_path / mode
    result = ppo.run(context(folder, inputs, reward_mode=mode, iterations=2))
    assert result["samples"] == 16 and (folder / "model" / "config.json").is_file()
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {
        "reward/total",
        "reward/instruction",
        "reward/answer",
        "ppo/kl",
        "ppo/clip_fraction",
        "value/explained_variance",
        "time/rollout",
        "optim/lr",
    } <= row.keys()
    assert len((folder / "rollouts.jsonl").read_text().splitlines()) == 8


def test_an_outcome_model_takes_the_place_of_a_prm(inputs, tmp_path):
    (inputs["prm"] / SETTINGS).write_text(ProcessModelConfig(outcome=True).model_dump_json())
    ppo.run(context(tmp_path / "orm", inputs, iterations=2))
    rows = [json.loads(line) for line in (tmp_path / "orm" / "rollouts.jsonl").read_text().splitlines()]
    assert {len(row["step_scores"]) for row in rows} <= {0, 1} and any(row["step_scores"] for row in rows)


def test_the_average_is_what_is_saved(inputs, tmp_path):
    module = torch.nn.Linear(1, 1, bias=False)
    average = Average(module, 0.75)
    start = module.weight.item()
    with torch.no_grad():
        module.weight += 4
    average.add(module)
    average.put_into(module)
    assert module.weight.item() == pytest.approx(start + 1)
    last, mean = (tmp_path / name for name in ("last", "mean"))
    ppo.run(context(last, inputs))
    ppo.run(context(mean, inputs, average=0.9))
    last_weights, mean_weights = (load_file(folder / "model" / "model.safetensors") for folder in (last, mean))
    assert any((last_weights[name] != mean_weights[name]).any() for name in last_weights)
