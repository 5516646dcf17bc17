"""PPO's update on stored rollouts; rank 0 writes the policy's weights. argv: out, model folder, DeepSpeed JSON or -."""

import sys

import torch

from rlef.config import PpoStage
from rlef.engines import dist, make_engine
from rlef.models import load_policy, load_tokenizer
from rlef.rl.advantages import gae, whiten
from rlef.rl.batch import RolloutBatch
from rlef.rl.policy import TokenCritic, TokenPolicy
from rlef.stages.ppo import _fill, update

out, folder, json_path = sys.argv[1:4]
dist.init("cpu")
torch.set_num_threads(1)
tokenizer = load_tokenizer(folder)
settings = PpoStage(prompts_per_iteration=6, samples_per_prompt=2, minibatches=2, micro_batch_size=2, critic_warmup=0, target_kl=None)
generator = torch.Generator().manual_seed(0)
lengths = [3, 9, 1, 5, 12, 2, 7, 4, 6, 8, 2, 3]  # very unequal
answers = [tuple(torch.randint(5, 200, (length,), generator=generator).tolist()) for length in lengths]
prompts = [tuple(torch.randint(5, 200, (4 + row % 3,), generator=generator).tolist()) for row in range(12)]
scores = [torch.randn(length, generator=generator) for length in lengths]
# Rank 1 of two holds three rows only: in one of the two mini-batches it may have none at all.
mine = list(range(12)) if dist.world() == 1 else list(range(9)) if dist.rank() == 0 else [9, 10, 11]
batch = RolloutBatch.of([prompts[r] for r in mine], [answers[r] for r in mine], [[0.0] * lengths[r] for r in mine], mine)
for place, row in enumerate(mine):
    batch.rewards[place, : lengths[row]] = scores[row]
common = {"max_grad_norm": 1.0, "warmup_steps": 0, "device": torch.device("cpu"), "deepspeed_json": None if json_path == "-" else json_path}
policy = make_engine(TokenPolicy(load_policy(folder)), lr=1e-3, **common)
critic = make_engine(TokenCritic.from_folder(folder), lr=1e-3, **common)
pad = int(tokenizer.pad_token_id)
_fill(batch, policy, TokenPolicy(load_policy(folder)), critic, settings, pad, torch.device("cpu"))
batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
batch.advantages = whiten(batch.advantages, batch.mask, dist.all_reduce_sum)
metrics = update(policy, critic, batch, settings, 0, 0, pad, torch.device("cpu"))
state = {name: value.detach().clone() for name, value in policy.full_parameters()}
if dist.is_main():
    torch.save({"state": state, "loss": metrics["ppo/loss"], "steps": metrics["optim/steps"]}, out)
dist.barrier()
