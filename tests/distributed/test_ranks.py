"""The PPO stage does on two processes what it does on one; SFT, PRM and PPO run on two under ZeRO-2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.comparing import ROOT, apart, ending, prompts, start

ZERO = {f"zero{stage}": str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json") for stage in (1, 2)}


def run(script, processes, out, *arguments):
    start(script, processes, out, *arguments, timeout_s=300)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def policy_and_prompts(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    return ending(tiny_folder, folder), prompts(folder)


@pytest.fixture(scope="module")
def stage_alone(policy_and_prompts, tmp_path_factory):
    """Weights, log and folder of the whole stage on one process."""
    folder = tmp_path_factory.mktemp("alone")
    return *run("ppo_stage_worker.py", 1, folder / "out.pt", folder, *policy_and_prompts), folder


@pytest.mark.slow
def test_r14_ppo_on_two_ranks_samples_tells_and_learns_what_one_process_does(stage_alone, policy_and_prompts, tmp_path):
    """The whole stage: each rank answers its share of the prompts, whose rewards must come back to their own rows."""
    alone, one, _ = stage_alone
    two, other = run("ppo_stage_worker.py", 2, tmp_path / "two.pt", tmp_path, *policy_and_prompts)
    assert len(one) == 3 and one[2]["ppo/kl"] != 0 and one[0]["ppo/kl_coef"] != one[2]["ppo/kl_coef"]
    for row, told in zip(one, other, strict=True):
        assert told == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert apart(alone, two, load_file(policy_and_prompts[0] / "model.safetensors")) < 1e-3


@pytest.mark.slow
def test_another_number_of_ranks_and_another_zero_stage_go_on_from_a_checkpoint(stage_alone, policy_and_prompts, tmp_path):
    """One process's first iteration, the second on two ranks under ZeRO-1, the third under ZeRO-2, or on one process again."""
    alone, one, folder = stage_alone
    for name, iteration, source, processes, zero in (
        ("zero1", 1, folder, 2, "zero1"),
        ("zero2", 2, None, 2, "zero2"),
        ("one", 2, None, 1, ""),
    ):
        begun = tmp_path / name
        saved = f"checkpoint-{iteration}"
        shutil.copytree((source or tmp_path / "zero1") / "checkpoints" / saved, begun / "checkpoints" / saved)
        weights, told = run(
            "ppo_stage_worker.py", processes, tmp_path / "out.pt", begun, *policy_and_prompts, *([ZERO[zero]] if zero else [])
        )
        for row, other in zip(one, told, strict=True):
            assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
        assert apart(alone, weights, load_file(policy_and_prompts[0] / "model.safetensors")) < 1e-3


@pytest.mark.slow
def test_sft_prm_and_ppo_run_on_two_processes_with_zero_2(tmp_path):
    """The command a user types; what it saves loads in plain transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    folder = tmp_path / "run"
    command = [sys.executable, "-m", "rlef", "run", str(ROOT / "tests" / "configs" / "tiny.yaml"), f"run.dir={folder}"]
    command += ["launch.processes=2", f"launch.deepspeed={ZERO['zero2']}", "sft.max_steps=10", "ppo.iterations=2", "launch.device=cpu"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    for stage in ("problems", "evolve", "respond", "sft", "label", "irm", "prm", "ppo"):
        done = subprocess.run([*command, "--only", stage], capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, stage + done.stdout[-2000:] + done.stderr[-4000:]
    for stage, kind in {"sft": AutoModelForCausalLM, "prm": AutoModelForTokenClassification, "ppo": AutoModelForCausalLM}.items():
        _, info = kind.from_pretrained(folder / stage / "model", output_loading_info=True)
        assert not info["missing_keys"]
