"""What PPO computes on one batch of rollouts: the log-probabilities and values it starts from, then its optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlef.config import PpoStage
from rlef.engines import dist
from rlef.rl.actors import Actors
from rlef.rl.advantages import masked
from rlef.rl.average import Average
from rlef.rl.batch import RolloutBatch, by_length, columns, dealt, joined, read_tokens
from rlef.rl.losses import policy_loss, token_shares, value_loss
from rlef.rl.monitor import Sums
from rlef.rollout.base import seed_of


def fill(batch: RolloutBatch, actors: Actors, settings: PpoStage, pad: int, device: torch.device, *, reuse: bool = False) -> torch.Tensor:
    """Write old and reference log-probabilities and values into `batch`; returns the entropies (B, T).

    The same forward as in the update, without gradient: log-probabilities of the sampler differ in the last digits. `reuse` takes them
    all the same, and minus them for the entropies, of which they are a sample; a net that says nothing but these is not read.
    """
    entropy = torch.zeros_like(batch.mask)
    nets = actors.trained(train_policy=True)
    if reuse:
        batch.old_logprobs, entropy = batch.rollout_logprobs.clone(), -batch.rollout_logprobs
        nets = tuple(net for net in nets if net.parts != ("policy",))
    with torch.no_grad():
        for index in _micro_batches(batch, settings):
            part = batch.select(index or [0])
            layout, width = columns(part, pad, device, shared=settings.share_prompts), part.mask.shape[1]
            batch.ref_logprobs[index, :width] = actors.reference(layout, width, settings.temperature).to(batch.mask).cpu()
            for net in nets:
                said = net.read(layout, width, settings.temperature, entropy=True)
                if said.policy is not None:
                    logprobs, spread = said.policy
                    assert spread is not None
                    batch.old_logprobs[index, :width] = logprobs.to(batch.mask).cpu()
                    entropy[index, :width] = spread.to(batch.mask).cpu()
                if said.values is not None:
                    batch.values[index, :width] = said.values.to(batch.mask).cpu()
    return entropy


def update(
    actors: Actors,
    batch: RolloutBatch,
    settings: PpoStage,
    iteration: int,
    seed: int,
    pad: int,
    device: torch.device,
    average: Average | None = None,
) -> dict[str, float]:
    """`epochs` x `minibatches` optimiser steps, exactly, unless the early stop ends them or a mini-batch is masked as a whole.

    Prompts, with all their samples, are dealt to mini-batches by their index over all ranks, and every loss is divided by the token
    count of the whole optimiser step, so micro-batch size, row order and number of ranks change nothing. Rows are dealt to ranks anew for
    each mini-batch: of the prompts that a rank sampled one mini-batch has many and another few, and all would wait for the fullest.
    """
    train_policy = iteration >= settings.critic_warmup
    batch = joined(dist.all_gather_object(batch))
    here = {int(row): index for index, row in enumerate(batch.rows)}
    sums, steps, stopped, skipped = Sums(), 0, False, 0
    norms: dict[str, list[float]] = {"policy": [], "value": []}
    learning_rate = 0.0
    for engine in actors.engines.values():
        engine.module.train(settings.gradient_checkpointing)  # it works in train mode alone; no layer of theirs drops anything out
    for epoch in range(settings.epochs):
        shuffle = torch.Generator().manual_seed(seed_of((seed, iteration, epoch)))
        for chunk in torch.randperm(settings.prompts_per_iteration, generator=shuffle).tensor_split(settings.minibatches):
            rows = [int(prompt) * settings.samples_per_prompt + sample for prompt in chunk for sample in range(settings.samples_per_prompt)]
            rows = [here[row] for row in rows if row in here]
            tokens = batch.mask[rows].sum().double().item()
            if tokens == 0:
                continue  # none of its answers could be judged
            divisor = token_shares(batch.mask[rows], settings.loss_mean, settings.max_tokens)[1].double().item()
            micro = dealt(batch, rows, settings.micro_batch_size, dist.world(), shared=settings.share_prompts)[dist.rank()]
            step = Sums()
            for number, index in enumerate(micro):
                part = batch.select(index or [0])
                mask = (part.mask if index else torch.zeros_like(part.mask)).to(device)
                layout = columns(part, pad, device, shared=settings.share_prompts)
                width, final = part.mask.shape[1], number == len(micro) - 1
                step.add(read=read_tokens(part, settings.share_prompts) if index else 0)
                for net in actors.trained(train_policy):
                    said = net.read(layout, width, settings.temperature, entropy=settings.entropy_coef > 0)
                    loss = torch.zeros((), device=device)
                    if said.values is not None:
                        old, target = part.values.to(device), part.returns.to(device)
                        v_loss, v_sums = value_loss(said.values, old, target, mask, clip=settings.value_clip)
                        loss = loss + net.value_coef * v_loss / tokens
                        step.add(value_loss=v_loss, value_clipped=v_sums["clip_fraction"])
                    if said.policy is not None:
                        logprobs, entropy = said.policy
                        shares, _ = token_shares(mask, settings.loss_mean, settings.max_tokens)
                        p_loss, p_sums = policy_loss(
                            logprobs,
                            part.old_logprobs.to(device),
                            part.advantages.to(device),
                            mask,
                            clip_range=settings.clip_range,
                            clip_range_high=settings.clip_range_high,
                            dual_clip=settings.dual_clip,
                            weights=shares * part.weights.to(device),
                        )
                        bonus = settings.entropy_coef * masked(entropy * shares, mask).sum() if entropy is not None else 0.0
                        loss = loss + (p_loss - bonus) / divisor
                        step.add(policy_loss=p_loss, **p_sums)
                    net.engine.backward(loss, last=final)
            reduced = step.reduced()
            if train_policy and settings.target_kl is not None and reduced["approx_kl"] / tokens > 1.5 * settings.target_kl:
                for engine in actors.engines.values():
                    engine.discard()  # agreed by all ranks: the sum is over all of them
                stopped = True
                break
            for net in actors.trained(train_policy):
                result = net.engine.step()
                for name in net.parts:
                    norms[name].append(result.grad_norm)
                skipped += result.skipped
                learning_rate = result.lr
            if train_policy and average is not None:
                average.add(actors.policy.engine.module)
            steps += 1
            sums.add(
                tokens=tokens / dist.world(),
                divisor=divisor / dist.world(),
                **{name: value / dist.world() for name, value in reduced.items()},
            )
        if stopped:
            break
    for engine in actors.engines.values():
        engine.module.eval()
    totals = sums.reduced()
    tokens = max(totals.get("tokens", 0.0), 1.0)
    metrics = {
        "value/loss": totals.get("value_loss", 0.0) / tokens,
        "value/clip_fraction": totals.get("value_clipped", 0.0) / tokens,
        "value/grad_norm": _mean(norms["value"]),
        "optim/steps": float(steps),
        "optim/tokens": totals.get("read", 0.0),
        "optim/answer_tokens": totals.get("tokens", 0.0),
        "optim/skipped_steps": float(skipped),
        "optim/lr": learning_rate,
        "ppo/early_stop": float(stopped),
    }
    if train_policy:
        metrics |= {
            "ppo/loss": totals.get("policy_loss", 0.0) / max(totals.get("divisor", 0.0), 1.0),
            "ppo/clip_fraction": totals.get("clip_fraction", 0.0) / tokens,
            "ppo/approx_kl": totals.get("approx_kl", 0.0) / tokens,
            "ppo/ratio": totals.get("ratio", 0.0) / tokens,
            "ppo/grad_norm": _mean(norms["policy"]),
        }
    return metrics


def _micro_batches(batch: RolloutBatch, settings: PpoStage) -> list[list[int]]:
    """Rows of each forward over what this rank sampled. Collectives inside it need equal counts on all ranks: the short ones add empty
    micro-batches."""
    micro = list(by_length(batch, range(len(batch)), settings.micro_batch_size, shared=settings.share_prompts))
    pieces = int(dist.all_reduce_max(torch.tensor(len(micro))))
    return micro + [[] for _ in range(pieces - len(micro))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
