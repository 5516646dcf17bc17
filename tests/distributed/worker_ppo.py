"""PPO's updates on stored rollouts, one case after another; argv: folder of the results, of the policy, and cases as JSON, by their names:
{"deepspeed": JSON or null, "double": in fp64, and what else differs in the settings}. Rank 0 writes weights, metrics and gradients."""

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

LENGTHS = [3, 9, 1, 5, 12, 2, 7, 4, 6, 8, 2, 3]  # very unequal
SETTINGS = {
    "kind": "ppo", "prompts_per_iteration": 6, "samples_per_prompt": 2, "minibatches": 2, "micro_batch_size": 2, "target_kl": None,
    "policy_lr": 1e-3, "critic_lr": 1e-3, "max_grad_norm": 1e9, "lr_warmup": 0,
}  # fmt: skip
CPU = torch.device("cpu")


def rollouts(dtype):
    """This rank's share: rank 1 of two holds one prompt only."""
    generator = torch.Generator().manual_seed(0)
    answers = [tuple(torch.randint(5, 200, (length,), generator=generator).tolist()) for length in LENGTHS]
    prompts = [tuple(torch.randint(5, 200, (4 + prompt % 3,), generator=generator).tolist()) for prompt in range(6)]
    scores = [torch.randn(length, generator=generator) for length in LENGTHS]
    mine = list(range(12)) if dist.world() == 1 else list(range(10)) if dist.rank() == 0 else [10, 11]
    batch = RolloutBatch.of([prompts[r // 2] for r in mine], [answers[r] for r in mine], [[0.0] * LENGTHS[r] for r in mine], mine)
    for place, row in enumerate(mine):
        batch.rewards[place, : LENGTHS[row]] = scores[row]
    for name in ("mask", "old_logprobs", "ref_logprobs", "values", "rewards"):
        setattr(batch, name, getattr(batch, name).to(dtype))
    return batch


def watch(engine):
    """The gradients that its optimiser steps on from here."""
    seen, real = [], engine.optimizer.step

    def step():
        seen.append(torch.cat([weight.grad.flatten().clone() for weight in engine._masters]))
        return real()

    engine.optimizer.step = step
    return seen


def learn(folder, *, deepspeed=None, double=False, **layout):
    config = Config.model_validate({"model": {"random": {}}, "launch": {"deepspeed": deepspeed}, "stages": {"ppo": SETTINGS | layout}})
    settings, pad = config.stages["ppo"], int(load_tokenizer(folder).pad_token_id)
    batch, model = rollouts(torch.float64 if double else torch.float32), load_policy(folder)
    actors = build_actors(settings, config, model, adapted_base(settings, model, CPU, 0), Path(folder), Path(folder), CPU)
    if double:
        for part in (*(engine.module for engine in actors.engines.values()), actors.sampler, actors._reference):
            if isinstance(part, torch.nn.Module):
                part.double()

    def weights():
        walked = ((f"{net}.{name}", value) for net, engine in actors.engines.items() for name, value in engine.full_parameters())
        return {name: value.detach().clone() for name, value in walked}

    start, metrics, rows = weights(), [], []  # rows: of each mini-batch on this rank
    gradients = {} if deepspeed else {name: watch(engine) for name, engine in actors.engines.items()}
    real = updates.dealt

    def dealt(*arguments, **options):
        hands = real(*arguments, **options)
        rows.append(sum(map(len, hands[dist.rank()])))
        return hands

    for iteration in range(settings.iterations):
        updates.fill(batch, actors, settings, pad, CPU)
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
        batch.advantages = whiten(batch.advantages, batch.mask, dist.all_reduce_sum)
        updates.dealt = dealt
        told = updates.update(actors, batch, settings, iteration, 0, pad, CPU)
        updates.dealt = real
        metrics.append({name: value for name, value in told.items() if name.startswith(("ppo", "value", "optim"))})
    return {"start": start, "state": weights(), "metrics": metrics, "gradients": gradients, "rows": dist.all_gather_object(rows)}


if __name__ == "__main__":
    dist.init("cpu")
    torch.set_num_threads(1)
    for name, case in json.loads(sys.argv[3]).items():
        learned = learn(sys.argv[2], **case)
        if dist.is_main():
            torch.save(learned, Path(sys.argv[1], f"{name}.pt"))
    dist.barrier()
