"""PPO with a critic on the learned reward r_I * r_A: sample, score, estimate advantages, update; the loop reads from top to bottom."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlef.config import PpoStage
from rlef.engines import dist, make_engine
from rlef.engines.base import Engine
from rlef.errors import UserError
from rlef.models import Tokenizer, load_policy, load_tokenizer, model_folder, pick_device, stop_ids
from rlef.records import Rollout, write_jsonl
from rlef.rl.advantages import gae, k1, masked, whiten
from rlef.rl.batch import RolloutBatch, by_length, columns
from rlef.rl.losses import adapted_kl_coef, mismatch_weights, policy_loss, token_shares, value_loss
from rlef.rl.monitor import Alarms, Sums, is_exact, rollout_metrics
from rlef.rl.policy import TokenCritic, TokenPolicy
from rlef.rl.reward import length_penalty, place_rewards
from rlef.rl.sampling import Prompt, Sample, load_reward, read_prompts, sample_answers, score_answers, take_prompts
from rlef.rollout.base import SamplingParams, seed_of
from rlef.rollout.hf import HFGenerator
from rlef.stages.context import StageContext
from rlef.stages.fresh import FreshRounds

STAGE_VERSION = 1
CHECKPOINT_EVERY = 10  # iterations
KEPT_ROLLOUTS = 64  # of the last iteration, for the report


class Average:
    """A running average of the policy's weights: policy gradients are mostly noise, and averaging takes it out of what is saved."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def add(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def put_into(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.weights[name])


@contextmanager
def timed(times: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    times[f"time/{name}"] = times.get(f"time/{name}", 0.0) + time.perf_counter() - start


def run(ctx: StageContext) -> dict:
    """Train the policy of `init` on `prompts` against `irm` x `prm`. Writes model/, rollouts.jsonl and, while it runs, checkpoint/."""
    settings: PpoStage = ctx.settings
    dist.init(ctx.config.launch.device)
    device = pick_device(ctx.config.launch.device)
    torch.manual_seed(ctx.seed)

    # Policy, critic and a frozen reference; the sampler reads the policy's own weights.
    start = model_folder(ctx.inputs["init"])
    dtype, trust = ctx.config.model.dtype, ctx.config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    policy_model = load_policy(start, dtype=dtype, trust_remote_code=trust)
    stops, pad = stop_ids(tokenizer, policy_model), int(tokenizer.pad_token_id)
    reward = load_reward(settings, ctx.inputs, tokenizer, ctx.config.model, stops, ctx.config.launch.device)
    fresh = FreshRounds(ctx, tokenizer) if settings.fresh_every is not None else None
    coming: list[list[Prompt]] = []
    if fresh is None:
        prompts = read_prompts(ctx.inputs["prompts"], tokenizer, ctx.config.model, use_answers=settings.use_answers)
        coming = [take_prompts(prompts, iteration, settings.prompts_per_iteration, ctx.seed) for iteration in range(settings.iterations)]
        # Before the others take the IRM's room. Iterations that a resumed run has behind it too: other batches give other last digits.
        reward.settle_instructions([prompt.problem.question for chosen in coming for prompt in chosen[dist.rank() :: dist.world()]])
    reference = TokenPolicy(load_policy(start, dtype=dtype, trust_remote_code=trust)).to(device).requires_grad_(False)
    critic_start = _critic_folder(ctx, tokenizer) if settings.critic_init == "prm" else start
    critic_model = TokenCritic.from_folder(critic_start, dtype=dtype, trust_remote_code=trust)
    common = {
        "max_grad_norm": settings.max_grad_norm,
        "warmup_steps": settings.lr_warmup,
        "device": device,
        "deepspeed_json": ctx.config.launch.deepspeed,
    }
    steps = (settings.iterations - settings.critic_warmup) * settings.epochs * settings.minibatches
    policy = make_engine(
        TokenPolicy(policy_model), lr=settings.policy_lr, total_steps=max(1, steps) if settings.lr_decay else None, **common
    )
    critic = make_engine(critic_model, lr=settings.critic_lr, **common)
    if settings.gradient_checkpointing:
        for model in (policy_model, critic_model.model):
            model.activation_checkpointing_enable({"use_reentrant": False})
    generator = HFGenerator(policy_model, pad, settings.rollout_batch_size)
    sampling = SamplingParams(settings.max_tokens, settings.temperature, stops)

    average = Average(policy.module, settings.average) if settings.average is not None else None

    alarms = Alarms()
    first, kl_coef = _resume(ctx, policy, critic, average, alarms)
    ctx.tracker.truncate(first)
    last: list[Sample] = []
    with ctx.tracker.progress(ctx.name, settings.iterations - first) as advance:
        for iteration in range(first, settings.iterations):
            times: dict[str, float] = {}

            # 0. The prompts; at the start of a fresh round the teacher evolves those of the round before.
            if fresh is None:
                chosen = coming[iteration]
            else:
                with timed(times, "evolve"):
                    chosen = fresh.take(iteration)

            # 1. Sample answers to this rank's share of them.
            with timed(times, "rollout"):
                mine = list(range(dist.rank(), len(chosen), dist.world()))
                answers = sample_answers(
                    generator, [chosen[index] for index in mine], settings.samples_per_prompt, sampling, seed=ctx.seed, iteration=iteration
                )

            # 2. Score them: r_I of the prompt, r_A of the answer's weakest step.
            with timed(times, "reward"):
                samples = score_answers(reward, answers)
                rows = [index * settings.samples_per_prompt + sample for index in mine for sample in range(settings.samples_per_prompt)]
                batch = RolloutBatch.of(
                    [sample.prompt.ids for sample in samples],
                    [sample.completion.tokens for sample in samples],
                    [sample.completion.logprobs for sample in samples],
                    rows,
                )

            # 3. Log-probabilities of policy and reference, values; then rewards a token and advantages.
            with timed(times, "forward"):
                entropy = _fill(batch, policy, reference, critic, settings, pad, device)
            scored = torch.zeros_like(batch.mask)
            for row, sample in enumerate(samples):
                length = len(sample.completion.tokens)
                scored[row, :length] = torch.tensor(_rewards(sample, settings))
            batch.rewards = scored - kl_coef * masked(k1(batch.old_logprobs, batch.ref_logprobs), batch.mask)
            batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask, gamma=settings.gamma, lam=settings.lam)
            batch.weights = mismatch_weights(
                batch.old_logprobs, batch.rollout_logprobs, batch.mask, how=settings.correction, cap=settings.correction_cap
            )
            if settings.whiten_advantages:
                batch.advantages = whiten(batch.advantages, batch.mask, dist.all_reduce_sum)

            # 4. Update the critic always, the policy once the critic has warmed up.
            with timed(times, "update"):
                updates = update(policy, critic, batch, settings, iteration, ctx.seed, pad, device, average)
            generator.sync_weights((name.removeprefix("model."), value) for name, value in policy.full_parameters())

            # 5. Log, show, save.
            metrics = rollout_metrics(batch, samples, entropy) | updates | times | {"ppo/kl_coef": kl_coef}
            if settings.kl_target is not None:
                answers_seen = settings.prompts_per_iteration * settings.samples_per_prompt
                kl_coef = adapted_kl_coef(
                    kl_coef, metrics["ppo/kl"], target=settings.kl_target, horizon=settings.kl_horizon, rows=answers_seen
                )
            if fresh is not None:
                metrics["rollout/pass_rate"] = fresh.record(iteration, samples)
            for name, message in alarms.raised(iteration + 1, metrics).items():
                ctx.tracker.alert(name, message)
            seconds = sum(times.values())
            metrics["perf/tokens_per_second"] = metrics["rollout/tokens"] / seconds
            metrics["perf/samples_per_second"] = settings.prompts_per_iteration * settings.samples_per_prompt / seconds
            ctx.tracker.log(metrics, iteration + 1)
            advance(1, reward=metrics["reward/total"], kl=metrics["ppo/kl"], length=metrics["rollout/length"])
            last = samples
            if (iteration + 1) % CHECKPOINT_EVERY == 0 and iteration + 1 < settings.iterations:
                _checkpoint(ctx, policy, critic, average, alarms, iteration + 1, kl_coef)

    if dist.is_main():
        write_jsonl(ctx.folder / "rollouts.jsonl", [_as_rollout(sample, settings.iterations) for sample in last[:KEPT_ROLLOUTS]])
        ctx.tracker.table("rollouts", *_table(last[:KEPT_ROLLOUTS]))
    if average is not None:
        average.put_into(policy.module)
    policy.save_model(ctx.folder / "model")
    if dist.is_main():
        tokenizer.save_pretrained(ctx.folder / "model")
        shutil.rmtree(ctx.folder / "checkpoint", ignore_errors=True)
    dist.barrier()
    return {
        "iterations": settings.iterations,
        "samples": settings.iterations * settings.prompts_per_iteration * settings.samples_per_prompt,
        "alarms": alarms.since,
        **(fresh.account() if fresh is not None else {}),
    }


def _critic_folder(ctx: StageContext, tokenizer: Tokenizer) -> Path:
    """The process reward model's. Raises UserError where it would read the policy's tokens as others."""
    folder = model_folder(ctx.inputs["prm"])
    theirs = load_tokenizer(folder).get_vocab()
    if any(theirs.get(token) != place for token, place in tokenizer.get_vocab().items()):
        raise UserError(
            f"stages.{ctx.name}.critic_init: prm: {folder} has another tokenizer than the policy", fix="use critic_init: policy"
        )
    return folder


def _rewards(sample: Sample, settings: PpoStage) -> list[float]:
    """A token of the answer each: the score where it belongs; on the last token what the outcome adds and the length costs."""
    finished, length = sample.completion.finished, len(sample.completion.tokens)
    rewards = place_rewards(sample.score, length, mode=settings.reward_mode, clip_from=settings.clip_from)
    rewards[-1] += settings.outcome_weight * is_exact(sample) - length_penalty(
        length,
        finished,
        max_tokens=settings.max_tokens,
        soft_tokens=settings.soft_tokens,
        soft_penalty=settings.soft_penalty,
        cut_off=settings.missing_eos_penalty,
    )
    return rewards


def update(
    policy: Engine,
    critic: Engine,
    batch: RolloutBatch,
    settings: PpoStage,
    iteration: int,
    seed: int,
    pad: int,
    device: torch.device,
    average: Average | None = None,
) -> dict[str, float]:
    """`epochs` x `minibatches` optimiser steps, exactly, unless the early stop ends them.

    Prompts, with all their samples, are dealt to mini-batches by their index over all ranks, and every loss is divided by the token
    count of the whole optimiser step, so micro-batch size, row order and number of ranks change nothing.
    """
    train_policy = iteration >= settings.critic_warmup
    here = {int(row): index for index, row in enumerate(batch.rows)}
    sums, steps, stopped, skipped = Sums(), 0, False, 0
    norms: dict[str, list[float]] = {"policy": [], "value": []}
    learning_rate = 0.0
    for engine in (policy, critic):
        engine.module.train(settings.gradient_checkpointing)  # it works in train mode alone; no layer of theirs drops anything out
    for epoch in range(settings.epochs):
        shuffle = torch.Generator().manual_seed(seed_of((seed, iteration, epoch)))
        for chunk in torch.randperm(settings.prompts_per_iteration, generator=shuffle).tensor_split(settings.minibatches):
            rows = [int(prompt) * settings.samples_per_prompt + sample for prompt in chunk for sample in range(settings.samples_per_prompt)]
            mine = [here[row] for row in rows if row in here]
            micro = list(by_length(batch, mine, settings.micro_batch_size, shared=settings.share_prompts))
            # Collectives inside a backward need equal counts on all ranks: the short ones add empty micro-batches.
            pieces = int(dist.all_reduce_max(torch.tensor(len(micro))))
            micro += [[] for _ in range(pieces - len(micro))]
            tokens = dist.all_reduce_sum(batch.mask[mine].sum().double()).item()
            count = token_shares(batch.mask[mine], settings.loss_mean, settings.max_tokens)[1]
            divisor = dist.all_reduce_sum(count.double()).item()
            step = Sums()
            for number, index in enumerate(micro):
                part = batch.select(index or [0])
                mask = (part.mask if index else torch.zeros_like(part.mask)).to(device)
                layout = columns(part, pad, device, shared=settings.share_prompts)
                width, final = part.mask.shape[1], number == pieces - 1
                values = critic.forward(layout, width)
                v_loss, v_sums = value_loss(values, part.values.to(device), part.returns.to(device), mask, clip=settings.value_clip)
                critic.backward(v_loss / tokens, last=final)
                step.add(value_loss=v_loss, value_clipped=v_sums["clip_fraction"])
                if train_policy:
                    wanted = settings.entropy_coef > 0
                    logprobs, entropy = policy.forward(layout, width, settings.temperature, entropy_gradient=wanted)
                    shares, _ = token_shares(mask, settings.loss_mean, settings.max_tokens)
                    loss, p_sums = policy_loss(
                        logprobs,
                        part.old_logprobs.to(device),
                        part.advantages.to(device),
                        mask,
                        clip_range=settings.clip_range,
                        clip_range_high=settings.clip_range_high,
                        dual_clip=settings.dual_clip,
                        weights=shares * part.weights.to(device),
                    )
                    bonus = settings.entropy_coef * masked(entropy * shares, mask).sum() if wanted else 0.0
                    policy.backward((loss - bonus) / divisor, last=final)
                    step.add(policy_loss=loss, **p_sums)
            reduced = step.reduced()
            if train_policy and settings.target_kl is not None and reduced["approx_kl"] / tokens > 1.5 * settings.target_kl:
                policy.discard()  # agreed by all ranks: the sum is over all of them
                critic.discard()
                stopped = True
                break
            result = critic.step()
            norms["value"].append(result.grad_norm)
            skipped += result.skipped
            if train_policy:
                result = policy.step()
                if average is not None:
                    average.add(policy.module)
                norms["policy"].append(result.grad_norm)
                skipped += result.skipped
            learning_rate = result.lr
            steps += 1
            sums.add(
                tokens=tokens / dist.world(),
                divisor=divisor / dist.world(),
                **{name: value / dist.world() for name, value in reduced.items()},
            )
        if stopped:
            break
    for engine in (policy, critic):
        engine.module.eval()
    totals = sums.reduced()
    tokens = max(totals.get("tokens", 0.0), 1.0)
    metrics = {
        "value/loss": totals.get("value_loss", 0.0) / tokens,
        "value/clip_fraction": totals.get("value_clipped", 0.0) / tokens,
        "value/grad_norm": _mean(norms["value"]),
        "optim/steps": float(steps),
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


def _fill(
    batch: RolloutBatch, policy: Engine, reference: TokenPolicy, critic: Engine, settings: PpoStage, pad: int, device: torch.device
) -> torch.Tensor:
    """Write old and reference log-probabilities and values into `batch`; returns the entropies (B, T).

    The same forward as in the update, without gradient: log-probabilities of the sampler differ in the last digits.
    """
    entropy = torch.zeros_like(batch.mask)
    with torch.no_grad():
        for index in by_length(batch, range(len(batch)), settings.micro_batch_size, shared=settings.share_prompts):
            part = batch.select(index)
            layout, width = columns(part, pad, device, shared=settings.share_prompts), part.mask.shape[1]
            logprobs, spread = policy.forward(layout, width, settings.temperature)
            batch.old_logprobs[index, :width] = logprobs.to(batch.mask).cpu()
            entropy[index, :width] = spread.to(batch.mask).cpu()
            batch.ref_logprobs[index, :width] = reference(layout, width, settings.temperature)[0].to(batch.mask).cpu()
            batch.values[index, :width] = critic.forward(layout, width).to(batch.mask).cpu()
    return entropy


def _checkpoint(
    ctx: StageContext, policy: Engine, critic: Engine, average: Average | None, alarms: Alarms, iteration: int, kl_coef: float
) -> None:
    """Write aside, then rename: a checkpoint is whole or absent."""
    folder, partial = ctx.folder / "checkpoint", ctx.folder / "checkpoint.partial"
    if dist.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    policy.save(partial / "policy")
    critic.save(partial / "critic")
    dist.barrier()
    if dist.is_main():
        if average is not None:
            save_file(average.weights, partial / "average.safetensors")
        (partial / "state.json").write_text(
            json.dumps({"iteration": iteration, "kl_coef": kl_coef, "alarms": alarms.state(), "world": dist.world()})
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    dist.barrier()


def _resume(ctx: StageContext, policy: Engine, critic: Engine, average: Average | None, alarms: Alarms) -> tuple[int, float]:
    """The iteration to go on from and its KL coefficient. All noise is keyed by iteration, so with weights and optimisers that is all."""
    folder: Path = ctx.folder / "checkpoint"
    if not (folder / "state.json").is_file():
        return 0, ctx.settings.kl_coef
    policy.load(folder / "policy")
    critic.load(folder / "critic")
    if average is not None:
        average.weights = load_file(folder / "average.safetensors", device=str(policy.device))
    state = json.loads((folder / "state.json").read_text())
    alarms.load(state["alarms"])
    return int(state["iteration"]), float(state["kl_coef"])


def _as_rollout(sample: Sample, iteration: int) -> Rollout:
    score = sample.score
    return Rollout(
        problem_id=sample.prompt.problem.id,
        iteration=iteration,
        sample=sample.index,
        question=sample.prompt.problem.question,
        text=score.text,
        step_scores=score.step_scores,
        instruction=score.instruction,
        answer=score.answer,
        total=score.total,
        length=len(sample.completion.tokens),
        finished=sample.completion.finished,
    )


def _table(samples: Sequence[Sample]) -> tuple[list[str], list[list]]:
    names = ["question", "text", "step_scores", "instruction", "answer", "total"]
    return names, [
        [
            sample.prompt.problem.question,
            sample.score.text,
            " ".join(f"{value:.2f}" for value in sample.score.step_scores),
            sample.score.instruction,
            sample.score.answer,
            sample.score.total,
        ]
        for sample in samples
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
