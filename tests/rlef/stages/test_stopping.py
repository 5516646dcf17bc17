"""Told to stop by SIGTERM, what trains saves at its next step; gone on with, it ends with the same weights, results and metrics, bit by bit."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from reward_models import checkpoints, stopping
from reward_models.records import SteppedSolution
from rlef.config import Config
from rlef.records import Problem, problem_id, write_jsonl
from rlef.stages import dpo, ppo, rft, sft, train_rewards
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

TINY = {"vocab_size": 320, "hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 96, "max_positions": 256}
SAMPLED = {"count": 6, "samples_per_prompt": 4, "max_tokens": 14, "batch_size": 4, "learning_rate": 1e-3}
RL = {"iterations": 4, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_tokens": 12, "critic_warmup": 1, "minibatches": 2}
STAGES = {
    # Between two lines of the log, after a look that was worse than the best, in a second epoch and with two micro-batches a step.
    "sft": (sft.run, {"data": "seeds", "max_steps": 16, "eval_every": 5, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.2}),
    "prm": (train_rewards.run_prm, {"epochs": 3, "batch_size": 8, "micro_batch_size": 4, "eval_every": 3, "learning_rate": 3e-3}),
    "ppo": (ppo.run, RL | {"policy_lr": 1e-3, "kl_target": 0.5, "kl_horizon": 20, "save_every": 9}),
    "dpo": (dpo.run, SAMPLED | {"min_margin": 0.0, "max_length_ratio": 99.0, "epochs": 3.0}),
    "rft": (rft.run, SAMPLED | {"epochs": 4.0}),
}
STOPS = {"sft": (13,), "prm": (7, 11), "ppo": (2, 3), "dpo": (3,), "rft": (3,)}


@pytest.fixture
def before():
    handler = stopping.listen()
    yield
    signal.signal(signal.SIGTERM, handler)


def inputs_of(kind, tmp_path, request):
    if kind == "sft":
        rows = [Problem(id=problem_id(f"{a}+{b}?"), question=f"{a}+{b}?", solution=(f"{a}+{b}={a + b}",), answer=str(a + b))
                for a in range(8) for b in range(8)]  # fmt: skip
        write_jsonl(tmp_path / "problems" / "seeds.jsonl", rows)
        return {"problems": tmp_path / "problems"}
    if kind == "prm":
        solutions = [
            SteppedSolution(
                problem_id=str(n), question=f"{n}?", steps=(f"{n}+1={n + 1}", f"{n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x"
            )
            for n in range(60)
        ]
        (tmp_path / "steps.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in solutions))
        return {"labels": tmp_path / "steps.jsonl", "init": request.getfixturevalue("tiny_folder")}
    return request.getfixturevalue("scored")


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_sigterm_saves_at_the_next_step_and_the_stage_ends_bitwise_the_same(kind, tmp_path, request, monkeypatch, before):
    function, settings = STAGES[kind]
    inputs = inputs_of(kind, tmp_path, request)

    def start(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        stages = {kind: {"kind": kind} | settings}
        config = Config.model_validate({"model": {"random": TINY}, "launch": {"device": "cpu"}, "stages": stages})
        tracker = Tracker(kind, folder / "metrics.jsonl", quiet=True)
        tracker.restore(None)
        return function(StageContext(kind, config, config.stages[kind], inputs, folder, tracker))

    whole = start("whole")
    for step in STOPS[kind]:
        with monkeypatch.context() as patched:
            told(patched, step)
            with pytest.raises(stopping.Stopped):
                start("cut")
        assert saved(tmp_path / "cut")[-1] == step
        stopping.listen()
    again = start("cut")
    assert json.dumps(again | {"train_seconds": 0}) == json.dumps(whole | {"train_seconds": 0})  # some are nan
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def told(patched, step):
    """SIGTERM arrives in the midst of that optimiser step, or iteration of PPO."""
    real_step, real_log = torch.optim.lr_scheduler.LambdaLR.step, Tracker.log

    def stepped(self, *arguments, **named):
        real_step(self, *arguments, **named)
        if self.last_epoch == step:
            os.kill(os.getpid(), signal.SIGTERM)

    def logged(self, metrics, number, *alerts):
        real_log(self, metrics, number, *alerts)
        if self.stage == "ppo" and number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    patched.setattr(torch.optim.lr_scheduler.LambdaLR, "step", stepped)
    patched.setattr(Tracker, "log", logged)


def saved(folder):
    return sorted(int(file.parent.name.split("-")[1]) for file in folder.rglob(f"checkpoint-*/{checkpoints.MANIFEST}"))


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("time", "perf"))} for row in lines]
