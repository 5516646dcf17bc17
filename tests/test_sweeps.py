"""What W&B's agent makes of a sweep file is a command that rlef takes, without W&B's servers."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlef.cli import parse
from rlef.load_config import load_config
from rlef.pipeline import resolve_inputs

ROOT = Path(__file__).parents[1]
SWEEPS = [file for file in sorted((ROOT / "configs" / "sweeps").glob("*.yaml")) if file.stem != "trial"]


def drawn(parameter, rng):
    """A value as W&B's servers draw one."""
    return rng.choice(parameter["values"]) if "values" in parameter else rng.uniform(parameter["min"], parameter["max"])


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The command that the agent starts for one trial, and its environment."""
    from wandb import wandb_agent

    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "before")  # the agent sets them in its own environment

    def start(sweep, values):
        seen = {}
        monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **settings: seen.update(settings) or SimpleNamespace())
        agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
        agent._sweep_command, agent._function, agent._run_processes = sweep["command"], None, {}
        agent._in_jupyter = agent._forward_signals = False
        arguments = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": "trial1", "program": sweep["program"], "args": arguments})
        return seen["command"], seen["env"]

    return start


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_rlef_takes_what_the_agent_starts(file, started, monkeypatch, tmp_path):
    sweep = yaml.safe_load(file.read_text())
    rng = random.Random(0)
    values = {name: drawn(parameter, rng) for name, parameter in sweep["parameters"].items()}
    command, environment = started(sweep, values)
    fake = tmp_path / "bin" / "rlef"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    environment |= {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    options = parse(words)
    assert options.command == "run" and "run.dir=runs/sweep/trial1" in options.overrides
    for one in ("sft", "respond", "irm", "prm"):  # of a finished quickstart
        (tmp_path / "runs" / "quickstart" / one / "model").mkdir(parents=True)
        (tmp_path / "runs" / "quickstart" / one / "model" / "config.json").write_text("{}")
    config = load_config(str(ROOT / options.config), options.overrides)
    for name, value in values.items():
        stage, key = name.split(".")
        assert getattr(config.stages[stage], key) == value
    assert all(resolve_inputs(config, name) for name in ("ppo", "evaluate"))
    kind, policy, figure = sweep["metric"]["name"].split("/")
    assert kind == config.stages[config.tracking.sweep_stage].kind and policy in config.stages[kind].policies and figure == "pass@1"


def test_a_trial_is_the_quickstart_but_for_what_a_sweep_changes():
    trial, whole = (yaml.safe_load((ROOT / "configs" / name).read_text()) for name in ("sweeps/trial.yaml", "quickstart.yaml"))
    inputs = {"init", "prompts", "irm", "prm"}
    assert trial["model"] == whole["model"] and trial["stages"]["problems"] == whole["stages"]["problems"]
    assert {key: value for key, value in trial["stages"]["ppo"].items() if key not in inputs} == whole["stages"]["ppo"]
