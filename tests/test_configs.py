"""Every shipped config loads and is joined up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlef.config import STAGE_TYPES
from rlef.load_config import load_config
from rlef.pipeline import REGISTRY, resolve_inputs, stage_version

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml")) + sorted((ROOT / "tests" / "configs").glob("*.yaml"))
# What a user gives on the command line, as the header of each config says.
NEEDED = {"gsm8k_smollm2": ["problems.source=datasets", "problems.path=openai/gsm8k", "model.path=HuggingFaceTB/SmolLM2-135M-Instruct"]}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_loads_and_every_input_has_a_maker(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(file, NEEDED.get(file.stem, ()))
    for name in config.stages:
        resolve_inputs(config, name)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_its_header_says_what_it_is_and_how_to_start_it(file):
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any("Launch:" in line for line in header)


def test_every_kind_of_stage_is_registered():
    assert set(REGISTRY) == set(STAGE_TYPES)
    assert all(stage_version(kind).isdigit() for kind in REGISTRY.values())


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_files_say_their_stage(file):
    assert json.loads(file.read_text())["zero_optimization"]["stage"] == int(file.stem.removeprefix("zero")[0])
