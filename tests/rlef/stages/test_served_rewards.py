"""A served reward model in place of one in this process: the config, what is redone when it changes, and PPO that gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reward_models.client import ServedInstructionModel, ServedProcessModel
from reward_models.errors import UserError as RewardModelsError
from reward_models.process import ProcessRewardModel
from rlef import pipeline
from rlef.config import Config, DpoStage, PpoStage, addresses
from rlef.engines import dist
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.processes import launch
from rlef.rl import scorers
from rlef.run_dir import RunDir
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.stages.sampled import ScoredSampler
from rlef.tracking import Tracker

STAGES = {
    "problems": {"seeds": 10},
    "sft": {"data": "seeds"},
    "ppo": {"prompts": "problems", "irm": "none", "prm": ["http://a:1", "http://b:1"]},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"model": {"random": {}}, "tracking": {"wandb": "disabled"}, "stages": STAGES}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return lambda *overrides: load_config("c.yaml", overrides)


def test_addresses_stand_where_a_stage_could(config):
    read = config("ppo.irm=https://h:8500/")
    assert addresses(read.stages["ppo"].irm) == ["https://h:8500"] and addresses(read.stages["ppo"].prm) == ["http://a:1", "http://b:1"]
    assert pipeline.resolve_inputs(read, "ppo") == {"init": "sft", "prompts": "problems"}
    assert pipeline.served_models(read.stages["ppo"]) == {"irm": ["https://h:8500"], "prm": ["http://a:1", "http://b:1"]}
    assert Config.model_validate(json.loads(json.dumps(read.model_dump(mode="json")))) == read  # as ranks and config.yaml have it
    assert addresses("prm") == addresses(None) == []


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["ppo.prm=[a, http://b:1]"], "stages.ppo.prm: must be a stage"),
        (["ppo.prm=[]"], "stages.ppo.prm: must be a stage"),
        (["ppo.prm=5"], "stages.ppo.prm: must be a stage"),
        (["ppo.prm=http://"], "not an address"),
        (["ppo.prm=http://h:x"], "not an address"),
        (["ppo.irm=http://me:secret@h:1"], "REWARD_MODELS_TOKEN"),
        (["ppo.critic_init=prm"], "stages.ppo.critic_init: prm: the critic starts from the model's folder"),
    ],
)
def test_mistakes_in_the_config(config, overrides, told):
    with pytest.raises(UserError) as error:
        config(*overrides)
    assert told in str(error.value)


def test_the_served_model_counts_and_not_its_address(config, monkeypatch, capsys):
    served, ran = {"digest": "one"}, []

    def digest(urls, kind):
        if served["digest"] is None:
            raise RewardModelsError(f"no server of the {kind} answers ({urls[0]})", "start one")
        return served["digest"]

    def fake(config, run, name, folder, inputs, kind, lead):
        ran.append(name)
        (folder / "out.txt").write_text("x")
        if served["digest"] == "stops":
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(pipeline, "served_digest", digest)
    monkeypatch.setattr(launch, "run_stage", fake)

    def run(*overrides):
        ran.clear()
        pipeline.run(config(*overrides))
        return list(ran)

    assert run() == ["problems", "sft", "ppo"] and run("ppo.prm=http://elsewhere:1") == []
    served["digest"] = None
    assert run() == []  # what is done needs no server
    with pytest.raises(RewardModelsError, match="no server of the prm answers"):
        run("ppo.iterations=3")
    served["digest"] = "stops"
    with pytest.raises(KeyboardInterrupt):
        run("ppo.iterations=3")
    capsys.readouterr()
    served["digest"] = "two"
    assert run("ppo.iterations=3") == ["ppo"]
    assert "changed since it was stopped: served prm" in capsys.readouterr().out
    served["digest"] = "three"
    assert run("ppo.iterations=3") == ["ppo"] and "changed: served prm" in capsys.readouterr().out
    assert RunDir("runs/c").manifest("ppo").fingerprint["served prm"] == "three"


def test_each_scorer_is_served_or_loaded(inputs, monkeypatch):
    asked = []
    monkeypatch.setattr(scorers, "ServedInstructionModel", lambda urls: asked.append(urls))
    monkeypatch.setattr(scorers, "ServedProcessModel", lambda urls: asked.append(urls))
    scorers.instruction_scorer("http://a:1", {}, "cpu")
    scorers.process_scorer(("http://a:1", "http://b:1/"), inputs, "cpu")
    assert asked == [["http://a:1"], ["http://a:1", "http://b:1"]]
    assert isinstance(scorers.process_scorer("prm", inputs, "cpu"), ProcessRewardModel)
    assert scorers.process_scorer(None, {}, "cpu") is None and scorers.instruction_scorer("none", {}, "cpu") is None


def test_all_processes_of_dpo_hold_the_main_ones_scores(inputs, tmp_path, monkeypatch):
    """Each asks the server, and the last digits of its answers hang on who else asks."""
    settings = DpoStage(count=2, samples_per_prompt=2, max_tokens=4)
    config = Config.model_validate({"model": {"random": {}}, "stages": {"dpo": settings.model_dump()}})
    context = StageContext("dpo", config, settings, inputs, tmp_path, Tracker("dpo", tmp_path / "metrics.jsonl", quiet=True))
    sampler = ScoredSampler(context, settings, inputs["init"])
    own = sampler.answers()
    monkeypatch.setattr(dist, "broadcast_object", lambda samples: [*samples, "the main one's"])
    assert sampler.answers() == [*own, "the main one's"] and len(own) == 4


@pytest.mark.slow
def test_ppo_with_served_models_is_ppo_with_local_ones(inputs, tmp_path):
    def train(name, inputs, **served):
        settings = {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_tokens": 12, "critic_warmup": 0}
        stage = PpoStage(**settings, minibatches=2, policy_lr=1e-3, **served)
        config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": stage.model_dump()}})
        folder = tmp_path / name
        folder.mkdir()
        ppo.run(StageContext("ppo", config, stage, inputs, folder, Tracker("ppo", folder / "metrics.jsonl", quiet=True)))
        return load_file(folder / "model" / "model.safetensors"), (folder / "rollouts.jsonl").read_text()

    models = ["--irm", str(inputs["irm"]), "--prm", str(inputs["prm"])]
    command = [sys.executable, "-m", "reward_models", "serve", *models, "--port", "0", "--token-env", "REWARD_MODELS_TOKEN"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"REWARD_MODELS_TOKEN": "s3cret"})
    try:
        url = server.stdout.readline().split()[2].rstrip(";")
        local, local_rollouts = train("local", inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REWARD_MODELS_TOKEN", "s3cret")
            here = {name: inputs[name] for name in ("init", "prompts")}
            _ready(url)
            served, served_rollouts = train("served", here, irm=url, prm=[url])
        assert all(torch.allclose(local[name], served[name], atol=1e-5) for name in local)
        assert not all(
            torch.equal(local[name], start) for name, start in load_file(inputs["init"] / "model.safetensors").items() if name in local
        )
        for one, other in zip(local_rollouts.splitlines(), served_rollouts.splitlines(), strict=True):
            ours, theirs = json.loads(one), json.loads(other)
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert theirs[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float | list) else value)
    finally:
        server.kill()
        server.wait()


def _ready(url):
    import time

    for _ in range(600):
        try:
            ServedInstructionModel([url])
            ServedProcessModel([url])
            return
        except RewardModelsError:
            time.sleep(0.1)
    raise AssertionError("the server does not come up")
