"""The PPO stage goes on with another number of processes and ZeRO stage; a whole run on two under ZeRO-2."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.comparing import ROOT, apart, ending, prompts, start
from tests.printed import foreign, printed

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
def test_a_run_on_two_processes_under_zero_2_prints_lines_of_ours_and_saves_what_transformers_load(tmp_path):
    """The command a user types."""
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    data = yaml.safe_load((ROOT / "tests" / "configs" / "tiny.yaml").read_text())
    data["stages"] = {name: settings for name, settings in data["stages"].items() if name not in ("dpo", "grpo", "evaluate")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    run = tmp_path / "run"
    changed = ["launch.processes=2", f"launch.deepspeed={ZERO['zero2']}", "launch.device=cpu", "sft.max_steps=10", "ppo.iterations=2"]
    done = printed("-m", "rlef", "run", tmp_path / "run.yaml", f"run.dir={run}", "tracking.wandb=offline", *changed, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert foreign(done.stdout) == [] and foreign(done.stderr) == []
    for stage, kind in {"sft": AutoModelForCausalLM, "prm": AutoModelForTokenClassification, "ppo": AutoModelForCausalLM}.items():
        _, info = kind.from_pretrained(run / stage / "model", output_loading_info=True)
        assert not info["missing_keys"]
