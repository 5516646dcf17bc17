"""The scripts that measure rollouts, on a tiny policy and without a server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from rlef.load_config import load_config
from rlef.models import stop_ids
from tests.test_scripts import script


def test_both_samplers_are_timed_on_the_same_rows(tiny):
    model, tokenizer = tiny
    study = script("benchmark_generation")
    prompts = [tuple(tokenizer.encode(text)) for text in ("2+2", "Ann has 3 pens.")]
    stops, pad = stop_ids(tokenizer, model), tokenizer.pad_token_id
    found = study.compare(model, prompts, 3, stops, pad, batch=6, max_tokens=8, repeats=2)
    assert {name: len(values) for name, values in found.items()} == {"rlef": 2, "transformers": 2, "speedup": 2}
    assert found["speedup"] == [ours / theirs for ours, theirs in zip(found["rlef"], found["transformers"], strict=True)]
    options = {"batch": 6, "max_tokens": 8, "seed": 0}
    whole = study.transformers_tokens(model, prompts, 3, [model.config.vocab_size - 1], pad, **options)
    everything = study.transformers_tokens(model, prompts, 3, range(model.config.vocab_size), pad, **options)
    assert everything == 6 < whole <= 48  # every token is a stop; nearly none is
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("arm", ["in_process", "served", "colocated"])
def test_the_arms_differ_in_their_sampler_alone(tmp_path, arm):
    study = script("served_rollouts")
    made = {"run": {"seed": 3}, "model": {"random": {"max_positions": 300}}, "stages": {"problems": {"kind": "problems", "seeds": 5}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made))
    config = study.config(tmp_path, arm, Path("/opt/vllm"), 4, tmp_path / "out")
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(config))
    ppo = load_config(tmp_path / "arm.yaml").stages["ppo"]
    assert ppo.iterations == 4 and ppo.init == str(tmp_path / "sft") and config["run"]["seed"] == 3
    told = (ppo.rollout.vllm, ppo.rollout.colocated, ppo.rollout.options)
    where = {"in_process": (None, False, ""), "served": ("/opt/vllm", False), "colocated": (None, True)}[arm]
    assert told == (*where, "--max-model-len 300")[:3]


def test_one_python_finds_the_packages_of_both_environments_its_own_first(tmp_path):
    theirs = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    theirs.mkdir(parents=True)
    for name in ("only_theirs", "numpy"):
        (theirs / f"{name}.py").write_text("")
    python = script("vllm_environment").together(tmp_path)
    found = "import importlib.util as f; print(*(f.find_spec(name).origin for name in ('only_theirs', 'numpy')), sep='\\n')"
    one, other = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True, env={}).stdout.split()
    assert one == str(theirs / "only_theirs.py") and not other.startswith(str(tmp_path))
