"""PPO's update on stored rollouts; rank 0 writes weights and gradients. argv: out, model folder, DeepSpeed JSON or - (then in fp64)."""

import sys

import torch

from rlef.config import PpoStage
from rlef.engines import dist, make_engine
from rlef.models import load_policy, load_tokenizer
from rlef.rl.advantages import gae, whiten
from rlef.rl.batch import RolloutBatch
from rlef.rl.policy import TokenCritic, TokenPolicy
from rlef.rl.update import fill, update
from rlef.stages import ppo

out, folder, json_path = sys.argv[1:4]
dist.init("cpu")
torch.set_num_threads(1)
dtype = torch.float64 if json_path == "-" else torch.float32
tokenizer = load_tokenizer(folder)
settings = PpoStage(prompts_per_iteration=6, samples_per_prompt=2, minibatches=2, micro_batch_size=2, critic_warmup=0, target_kl=None)
generator = torch.Generator().manual_seed(0)
lengths = [3, 9, 1, 5, 12, 2, 7, 4, 6, 8, 2, 3]  # very unequal
answers = [tuple(torch.randint(5, 200, (length,), generator=generator).tolist()) for length in lengths]
prompts = [tuple(torch.randint(5, 200, (4 + row % 3,), generator=generator).tolist()) for row in range(12)]
scores = [torch.randn(length, generator=generator) for length in lengths]
# Rank 1 of two holds one prompt only: in one of the two mini-batches it has no row at all.
mine = list(range(12)) if dist.world() == 1 else list(range(10)) if dist.rank() == 0 else [10, 11]
batch = RolloutBatch.of([prompts[r] for r in mine], [answers[r] for r in mine], [[0.0] * lengths[r] for r in mine], mine)
for place, row in enumerate(mine):
    batch.rewards[place, : lengths[row]] = scores[row]
for name in ("mask", "old_logprobs", "ref_logprobs", "values", "rewards"):
    setattr(batch, name, getattr(batch, name).to(dtype))
common = {"max_grad_norm": 1e9, "warmup_steps": 0, "device": torch.device("cpu"), "deepspeed_json": None if json_path == "-" else json_path}
policy = make_engine(TokenPolicy(load_policy(folder)).to(dtype), lr=1e-3, **common)
critic_module = TokenCritic.from_folder(folder)
torch.manual_seed(0)
torch.nn.init.normal_(critic_module.model.score.weight, std=0.2)
critic = make_engine(critic_module.to(dtype), lr=1e-3, **common)
pad = int(tokenizer.pad_token_id)
fill(batch, policy, TokenPolicy(load_policy(folder)).to(dtype), critic, settings, pad, torch.device("cpu"))
batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
batch.advantages = whiten(batch.advantages, batch.mask, dist.all_reduce_sum)

gradients = {"policy": [], "critic": []}
if json_path == "-":
    for name, engine in {"policy": policy, "critic": critic}.items():

        def watched(seen=gradients[name], engine=engine, real=engine.optimizer.step):
            seen.append(torch.cat([weight.grad.flatten().clone() for weight in engine._masters]))
            return real()

        engine.optimizer.step = watched
rows, by_length = [], ppo.by_length  # of each mini-batch on this rank
ppo.by_length = lambda batch, index, size, **options: rows.append(len(index)) or by_length(batch, index, size, **options)
metrics = update(policy, critic, batch, settings, 0, 0, pad, torch.device("cpu"))
metrics = {name: value for name, value in metrics.items() if name.startswith(("ppo", "value", "optim"))}
state = {name: value.detach().clone() for name, value in policy.full_parameters()}
every_rank = dist.all_gather_object(rows)
if dist.is_main():
    torch.save({"state": state, "metrics": metrics, "gradients": gradients, "rows": every_rank}, out)
dist.barrier()
