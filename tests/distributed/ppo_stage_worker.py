"""One PPO stage on this rank's share; argv: out, folder of the stage, of the policy, file of the prompts, perhaps a DeepSpeed JSON. Rank 0 writes
weights and the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlef.config import Config
from rlef.engines import dist
from rlef.rl.reward import RewardFunction
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker
from tests.rlef.stages.conftest import score_by_tokens

out, folder, start, prompts = map(Path, sys.argv[1:5])
torch.set_num_threads(1)
dist.init("cpu")
RewardFunction.score = lambda self, problems, completions: [score_by_tokens(completion) for completion in completions]
stage = {
    "kind": "ppo", "iterations": 3, "prompts_per_iteration": 6, "samples_per_prompt": 2, "max_tokens": 12, "critic_warmup": 1,
    "minibatches": 2, "policy_lr": 1e-3, "lr_warmup": 0, "target_kl": None, "kl_target": 0.5, "irm": "none", "save_every": 1,
    "prm": f"{Path(__file__).parents[2] / 'configs' / 'rewards' / 'exact_match.py'}:grade",  # its scores are replaced
}  # fmt: skip
config = Config.model_validate(
    {"model": {"random": {}}, "launch": {"device": "cpu", "deepspeed": (sys.argv[5:] or [None])[0]}, "stages": {"ppo": stage}}
)
folder.mkdir(exist_ok=True)
log = folder / "metrics.jsonl"
tracker = Tracker("ppo", log, quiet=True) if dist.is_main() else Tracker.null()
ppo.run(StageContext("ppo", config, config.stages["ppo"], {"init": start, "prompts": prompts}, folder, tracker))
if dist.is_main():
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    told = [{name: value for name, value in row.items() if not name.startswith(("time", "perf", "stage"))} for row in rows]
    torch.save((load_file(folder / "model" / "model.safetensors"), told), out)
dist.barrier()
