"""On a GPU the numbers are those of the CPU, and the stages run, alone and under DeepSpeed: `pytest -m gpu`."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from rlef.config import PpoStage
from rlef.engines import make_engine
from rlef.models import load_policy
from rlef.rl.actors import Actors, CriticNet, PolicyNet
from rlef.rl.advantages import gae
from rlef.rl.batch import RolloutBatch
from rlef.rl.policy import TokenCritic, TokenPolicy
from rlef.rl.update import fill, update
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def sampled(model, tokenizer, device):
    prompts = [tuple(tokenizer.encode("Ann has 3 pens. " * (1 + row % 3))) for row in range(4) for _ in range(2)]
    requests = [SampleRequest(prompt, (0, row)) for row, prompt in enumerate(prompts)]
    stops = (tokenizer.eos_token_id, *range(20, 60))
    done = HFGenerator(copy.deepcopy(model).double().to(device), tokenizer.pad_token_id).generate(requests, SamplingParams(16, 1.0, stops))
    return prompts, done


def test_a_key_draws_the_same_answer(tiny):
    model, tokenizer = tiny
    (_, here), (_, there) = sampled(model, tokenizer, CPU), sampled(model, tokenizer, GPU)
    assert [one.tokens for one in here] == [one.tokens for one in there] and len({one.tokens for one in here}) > 4
    for one, other in zip(here, there, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("share_prompts", [False, True])
def test_an_update_moves_both_nets_alike(tiny, tiny_folder, share_prompts):
    prompts, done = sampled(*tiny, CPU)
    settings = PpoStage(
        prompts_per_iteration=4, samples_per_prompt=2, minibatches=2, micro_batch_size=4, critic_warmup=0, share_prompts=share_prompts
    )

    def moved(device):
        batch = RolloutBatch.of(prompts, [one.tokens for one in done], [one.logprobs for one in done], range(8))
        for name in ("mask", "old_logprobs", "ref_logprobs", "values"):
            setattr(batch, name, getattr(batch, name).double())
        batch.rewards = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)).double() * batch.mask
        nets = TokenPolicy(load_policy(tiny_folder)).double(), TokenCritic.from_folder(tiny_folder).double()
        policy, critic = (make_engine(net, lr=1e-3, max_grad_norm=1.0, warmup_steps=0, device=device, deepspeed_json=None) for net in nets)
        pad = tiny[1].pad_token_id
        actors = Actors(PolicyNet(policy), CriticNet(critic), policy.module)
        fill(batch, actors, settings, pad, device)
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
        metrics = update(actors, batch, settings, 0, 0, pad, device)
        return metrics, [parameter.detach().cpu() for engine in (policy, critic) for parameter in engine.module.parameters()]

    start = [parameter.detach() for parameter in load_policy(tiny_folder).double().parameters()]
    (metrics, here), (other_metrics, there) = moved(CPU), moved(GPU)
    assert metrics == pytest.approx(other_metrics, rel=1e-3, abs=1e-6) and metrics["optim/steps"] == 2
    # Norms and rotary angles are fp32 in any model, and Adam makes much of gradients near zero: the whole update is compared, not each weight.
    apart = torch.cat([(one - other).flatten() for one, other in zip(here, there, strict=True)]).norm()
    travelled = torch.cat([(one - old).flatten() for one, old in zip(here, start, strict=False)]).norm()  # by the policy, which comes first
    assert apart < 1e-2 * travelled


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """The whole loop on the GPU, through the command line."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    rlef(folder)
    return folder


def rlef(folder: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "rlef", "run", str(ROOT / "tests" / "configs" / "tiny.yaml"), f"run.dir={folder}"]
    done = subprocess.run([*command, "launch.device=cuda", *overrides], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_every_stage_runs(run_folder):
    for stage in ("sft", "label", "irm", "prm", "ppo", "dpo", "evaluate", "report"):
        assert (run_folder / stage / "manifest.json").is_file(), stage
    last = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines() if '"ppo"' in line][-1]
    assert all(math.isfinite(value) for value in last.values() if isinstance(value, float))


def test_reward_models_score_as_on_the_cpu(run_folder):
    from reward_models.instruction import InstructionRewardModel
    from reward_models.process import ProcessRewardModel

    questions, steps = ["Ann has 3 pens.", "Ben has 4 pens. How many are 5 more?"], [["3+4=7", "#### 7"], ["4+5=9", "#### 9"]]
    here, there = (InstructionRewardModel.load(run_folder / "irm" / "model", device).score(questions) for device in (CPU, GPU))
    assert here == pytest.approx(there, abs=1e-4)
    here, there = (ProcessRewardModel.load(run_folder / "prm" / "model", device).score(questions, steps) for device in (CPU, GPU))
    for one, other in zip(here, there, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("layout", [["ppo.bf16=true"], ["ppo.lora.rank=4", "ppo.bf16=true"], ["ppo.shared_trunk=true"]], ids=" ".join)
def test_ppo_in_each_layout(run_folder, tmp_path, layout):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    rlef(folder, *layout, "--only", "ppo")
    _, info = AutoModelForCausalLM.from_pretrained(folder / "ppo" / "model", output_loading_info=True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert not info["missing_keys"] and last["stage"] == "ppo" and last["optim/skipped_steps"] == 0


@pytest.mark.parametrize("zero, stages", [(1, ["sft", "prm", "ppo", "dpo"]), (2, ["sft", "prm", "ppo"]), (3, ["sft", "prm"])])
def test_stages_run_under_deepspeed_in_bfloat16(run_folder, tmp_path, zero, stages):
    """What they save loads in plain transformers. Whether it is right is tested against one process on the CPU (tests/distributed)."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    for stage in stages:
        shutil.rmtree(folder / stage)
        rlef(folder, f"launch.deepspeed={ROOT / 'configs' / 'deepspeed' / f'zero{zero}.json'}", "model.dtype=bfloat16", "--only", stage)
        kind = AutoModelForTokenClassification if stage == "prm" else AutoModelForCausalLM
        model, info = kind.from_pretrained(folder / stage / "model", output_loading_info=True)
        assert not info["missing_keys"]
        assert all(parameter.isfinite().all() for parameter in model.parameters())
