"""PPO's update on stored rollouts; rank 0 writes weights and gradients. argv: out, model folder, DeepSpeed JSON or - (then in fp64), settings
of the layout as JSON."""

import json
import sys
from pathlib import Path

import torch

from rlef.config import Config
from rlef.engines import dist
from rlef.models import load_policy, load_tokenizer
from rlef.rl import update as updates
from rlef.rl.actors import adapted_base, build_actors
from rlef.rl.advantages import gae, whiten
from rlef.rl.batch import RolloutBatch

out, folder, json_path, layout = sys.argv[1:5]
dist.init("cpu")
torch.set_num_threads(1)
dtype = torch.float64 if json_path == "-" else torch.float32
tokenizer = load_tokenizer(folder)
stage = {
    "kind": "ppo", "prompts_per_iteration": 6, "samples_per_prompt": 2, "minibatches": 2, "micro_batch_size": 2, "target_kl": None,
    "policy_lr": 1e-3, "critic_lr": 1e-3, "max_grad_norm": 1e9, "lr_warmup": 0, **json.loads(layout),
}  # fmt: skip
launch = {"deepspeed": None if json_path == "-" else json_path}
config = Config.model_validate({"model": {"random": {}}, "launch": launch, "stages": {"ppo": stage}})
settings, cpu = config.stages["ppo"], torch.device("cpu")
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
model = load_policy(folder)
actors = build_actors(settings, config, model, adapted_base(settings, model, cpu, 0), Path(folder), Path(folder), cpu)
if dtype == torch.float64:
    for part in (*(engine.module for engine in actors.engines.values()), actors.sampler, actors._reference):
        if isinstance(part, torch.nn.Module):
            part.double()
pad = int(tokenizer.pad_token_id)


def weights():
    return {f"{net}.{name}": value.detach().clone() for net, engine in actors.engines.items() for name, value in engine.full_parameters()}


start = weights()
gradients = {name: [] for name in actors.engines}
if json_path == "-":
    for name, engine in actors.engines.items():

        def watched(seen=gradients[name], engine=engine, real=engine.optimizer.step):
            seen.append(torch.cat([weight.grad.flatten().clone() for weight in engine._masters]))
            return real()

        engine.optimizer.step = watched
rows, by_length = [], updates.by_length  # of each mini-batch on this rank
for iteration in range(settings.iterations):
    updates.fill(batch, actors, settings, pad, cpu)
    batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
    batch.advantages = whiten(batch.advantages, batch.mask, dist.all_reduce_sum)
    updates.by_length = lambda batch, index, size, **options: rows.append(len(index)) or by_length(batch, index, size, **options)
    metrics = updates.update(actors, batch, settings, iteration, 0, pad, cpu)
    updates.by_length = by_length
metrics = {name: value for name, value in metrics.items() if name.startswith(("ppo", "value", "optim"))}
state = weights()
every_rank = dist.all_gather_object(rows)
if dist.is_main():
    torch.save({"start": start, "state": state, "metrics": metrics, "gradients": gradients, "rows": every_rank}, out)
dist.barrier()
