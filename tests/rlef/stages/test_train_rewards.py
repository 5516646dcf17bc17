"""The reward-model stages: a run that was cut off goes on from its checkpoint; what the tracker is given."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from reward_models.records import SteppedSolution
from rlef.config import Config, PrmStage
from rlef.stages import train_rewards
from rlef.stages.context import StageContext
from rlef.tracking import Tracker


@pytest.fixture
def start(tiny_folder, tmp_path):
    rows = [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=(f"{n}+1={n + 1}", f"{n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x",
        )
        for n in range(60)
    ]  # fmt: skip
    (tmp_path / "steps.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))

    def run(name, tracker=None, **settings):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        stage = PrmStage.model_validate({"batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3} | settings)
        config = Config.model_validate({"model": {"random": {}}, "stages": {"prm": stage.model_dump()}})
        inputs = {"labels": tmp_path / "steps.jsonl", "init": tiny_folder}
        return train_rewards.run_prm(
            StageContext("prm", config, stage, inputs, folder, tracker or Tracker("prm", folder / "metrics.jsonl", quiet=True))
        )

    return run


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt


def test_a_stage_that_was_cut_off_goes_on_with_less_memory_and_ends_with_the_same_weights(start, tmp_path, monkeypatch):
    settings = {"save_every": 4, "eval_every": 4, "epochs": 3, "lora": {"rank": 4}}
    whole = start("whole", **settings)
    options = train_rewards._options
    monkeypatch.setattr(train_rewards, "_options", lambda ctx, own: _with(options(ctx, own), Killed()))
    with pytest.raises(KeyboardInterrupt):
        start("cut", **settings)
    monkeypatch.setattr(train_rewards, "_options", options)
    again = start("cut", **settings, micro_batch_size=2, gradient_checkpointing=True)
    assert again["early_stopping"]["looks"][:2] == whole["early_stopping"]["looks"][:2] and len(again["early_stopping"]["looks"]) > 2
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert not (tmp_path / "cut" / "model" / "checkpoint").exists()


def _with(options, callback):
    return type(options)(**{**vars(options), "callbacks": [*options.callbacks, callback]})


def test_the_tracker_gets_confusion_and_calibration(start):
    told = {}
    service = SimpleNamespace(
        have=0,
        log=lambda row, step: None,
        table=lambda name, columns, rows, step: told.update({name: rows}),
        plot=lambda name, columns, rows, step: told.update({name: rows}),
    )
    result = start("o", Tracker("prm", None, [service], quiet=True), epochs=1)
    confusion, line = told["prm/confusion"], told["prm/calibration"]
    assert [row[0] for row in confusion] == ["right", "wrong"] and sum(sum(row[1:]) for row in confusion) == result["steps"]
    assert confusion[0][1] == result["confusion"]["right_called_right"]
    assert [row[1] for row in line] == [one["share"] for one in result["reliability"]]
