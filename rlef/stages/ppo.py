"""PPO with a critic on the learned reward r_I * r_A: sample, score, estimate advantages, update; the loop reads from top to bottom."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from reward_models import checkpoints, stopping
from rlef.config import PpoStage
from rlef.engines import dist, random_state
from rlef.errors import UserError
from rlef.models import Tokenizer, load_policy, load_tokenizer, model_folder, pick_device, stop_ids
from rlef.records import write_jsonl
from rlef.rl.actors import Actors, adapted_base, build_actors
from rlef.rl.advantages import gae, k1, masked, whiten
from rlef.rl.average import Average
from rlef.rl.batch import RolloutBatch
from rlef.rl.losses import adapted_kl_coef, mismatch_weights
from rlef.rl.monitor import Alarms, is_exact, rollout_metrics
from rlef.rl.policy import products
from rlef.rl.reward import length_penalty, place_rewards
from rlef.rl.sampling import Prompt, Sample, as_rollout, load_reward, read_prompts, sample_answers, score_answers, take_prompts
from rlef.rl.shown import log_samples
from rlef.rl.trace import Trace
from rlef.rl.update import fill, update
from rlef.rl.utilisation import Multiplied, matmul_rate
from rlef.rollout.base import SamplingParams
from rlef.run_dir import CHECKPOINTS, outside_digest, write_json
from rlef.stages.context import StageContext
from rlef.stages.fresh import FreshRounds
from rlef.stages.rollouts import make_generator

STAGE_VERSION = 1
KEPT_ROLLOUTS = 64  # of the last iteration, for the report
MOST_UNMOVED = 3  # iterations in a row of skipped steps alone, at which it stops
MOST_UNJUDGED = 3  # iterations in a row without a single answer that could be judged, at which it stops


@contextmanager
def timed(times: dict[str, float], name: str):
    start = time.perf_counter()
    with torch.profiler.record_function(name):
        yield
    times[f"time/{name}"] = times.get(f"time/{name}", 0.0) + time.perf_counter() - start


def run(ctx: StageContext) -> dict:
    """Train the policy of `init` on `prompts` against `irm` x `prm`. Writes model/, rollouts.jsonl and, while it runs, checkpoints/."""
    settings: PpoStage = ctx.settings
    dist.init(ctx.config.launch.device)
    device = pick_device(ctx.config.launch.device)
    torch.manual_seed(ctx.seed)

    # Policy, critic and reference; the sampler reads the policy's own weights.
    start = model_folder(ctx.inputs["init"])
    dtype, trust = ctx.config.model.dtype, ctx.config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    policy_model = load_policy(start, dtype=dtype, trust_remote_code=trust)
    stops, pad = stop_ids(tokenizer, policy_model), int(tokenizer.pad_token_id)
    base = adapted_base(settings, policy_model, device, ctx.seed)
    launch = ctx.config.launch
    read_on = base if launch.reward_device is None else None  # else the base lies elsewhere
    reward = load_reward(settings, ctx.inputs, tokenizer, ctx.config.model, stops, launch.rewards_on, read_on)
    fresh = FreshRounds(ctx, tokenizer) if settings.fresh_every is not None else None
    coming: list[list[Prompt]] = []
    if fresh is None:
        prompts = read_prompts(ctx.inputs["prompts"], tokenizer, ctx.config.model, use_answers=settings.use_answers)
        coming = [take_prompts(prompts, iteration, settings.prompts_per_iteration, ctx.seed) for iteration in range(settings.iterations)]
        # Before the others take the IRM's room. Iterations that a resumed run has behind it too: other batches give other last digits.
        reward.settle_instructions([prompt.problem.question for chosen in coming for prompt in chosen[dist.rank() :: dist.world()]])
    critic_start = _critic_folder(ctx, tokenizer) if settings.critic_init == "prm" else start
    # Of whole copies alone: adapters and a shared trunk need other operations.
    whole = settings.lora is None and not settings.shared_trunk
    multiplied = Multiplied.of(policy_model)
    rate = matmul_rate(policy_model, device, torch.bfloat16 if settings.bf16 else policy_model.dtype) if whole else None
    actors = build_actors(settings, ctx.config, policy_model, base, start, critic_start, device)
    generator = make_generator(ctx, actors.sampler, tokenizer, start)
    sampling = SamplingParams(settings.max_tokens, settings.temperature, stops)
    exact = settings.rollout.by_policy and policy_model.dtype == torch.float32 and not settings.bf16

    average = Average(actors.policy.engine.module, settings.average) if settings.average is not None else None

    alarms = Alarms()
    saved = Checkpoints(ctx, actors, average, alarms, start)
    first, kl_coef, unjudged = saved.resume()
    unmoved = 0
    # The first one that also trains the policy and is not the process's first, which still warms up.
    traced = min(max(first + 1, settings.critic_warmup), settings.iterations - 1)
    trace = Trace(ctx.folder / "trace.json.gz", traced if settings.profile and dist.is_main() else None)
    last: list[Sample] = []
    with ctx.tracker.progress(ctx.name, settings.iterations, done=first) as advance, stopping.deferred():
        for iteration in range(first, settings.iterations):
            times: dict[str, float] = {}
            trace.begin(iteration)

            # 0. The prompts; at the start of a fresh round the teacher evolves those of the round before.
            if fresh is None:
                chosen = coming[iteration]
            else:
                if fresh.begins(iteration) and iteration > first:  # a teacher may take hours
                    saved.write(iteration, kl_coef, unjudged)
                with timed(times, "evolve"):
                    chosen = fresh.take(iteration)

            # 1. Sample answers to this rank's share of them, from the weights as they are now.
            with timed(times, "sync"):
                synced = actors.sync(generator)
            with timed(times, "rollout"), products(device, settings.bf16):
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
                batch.mask[torch.tensor([sample.score.masked for sample in samples])] = 0.0

            # 3. Log-probabilities of policy and reference, values; then rewards a token and advantages.
            with timed(times, "forward"):
                entropy = fill(batch, actors, settings, pad, device, reuse=exact and settings.reuse_logprobs)
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
                updates = update(actors, batch, settings, iteration, ctx.seed, pad, device, average)

            trace.end()

            # 5. Log, show, save.
            metrics = rollout_metrics(batch, samples, entropy) | updates | synced | times | {"ppo/kl_coef": kl_coef}
            if settings.kl_target is not None:
                answers_seen = settings.prompts_per_iteration * settings.samples_per_prompt
                kl_coef = adapted_kl_coef(
                    kl_coef, metrics["ppo/kl"], target=settings.kl_target, horizon=settings.kl_horizon, rows=answers_seen
                )
            if fresh is not None:
                metrics["rollout/pass_rate"] = fresh.record(iteration, samples)
            unjudged = unjudged + 1 if metrics["reward/masked"] == 1 else 0
            if unjudged == MOST_UNJUDGED:
                raise UserError(
                    f"{ctx.name}: in {MOST_UNJUDGED} iterations in a row not one answer could be judged, the last is {iteration + 1}",
                    fix=f"see why {ctx.name}.prm or {ctx.name}.irm gives no score; a function that needs `gold` needs use_answers: true",
                )
            # Whose policy or critic did not move once.
            unmoved = unmoved + 1 if 0 < metrics["optim/steps"] <= metrics["optim/skipped_steps"] else 0
            if unmoved == MOST_UNMOVED:
                raise UserError(
                    f"{ctx.name}: in {MOST_UNMOVED} iterations in a row no gradient was finite, the last is {iteration + 1}; every step "
                    "was skipped, and the weights are those from before",
                    fix=f"lower {ctx.name}.policy_lr and critic_lr, or leave bf16 out; checkpoints in {ctx.folder / CHECKPOINTS} are whole",
                )
            seconds = sum(times.values())
            metrics["perf/tokens_per_second"] = metrics["rollout/tokens"] / seconds
            metrics["perf/samples_per_second"] = settings.prompts_per_iteration * settings.samples_per_prompt / seconds
            operations = multiplied.update_flops(
                metrics["optim/tokens"], metrics["optim/answer_tokens"], policy=iteration >= settings.critic_warmup
            )
            metrics["perf/update_tokens_per_second"] = metrics["optim/tokens"] / times["time/update"]
            if rate is not None:
                metrics["perf/mfu"] = operations / (times["time/update"] * rate * dist.world())
            raised = alarms.raised(iteration + 1, metrics)
            if unjudged:
                raised["unjudged"] = f"iteration {iteration + 1}: no answer could be judged, and nothing was learned from it"
            ctx.tracker.log(metrics, iteration + 1, raised)
            advance(1, reward=metrics["reward/total"], kl=metrics["ppo/kl"], length=metrics["rollout/length"])
            last = samples
            if dist.is_main():
                write_jsonl(ctx.folder / "rollouts.jsonl", [as_rollout(sample, iteration + 1) for sample in last[:KEPT_ROLLOUTS]])
            stop = dist.any_rank(stopping.asked())
            if (stop or (iteration + 1) % settings.save_every == 0) and iteration + 1 < settings.iterations:
                saved.write(iteration + 1, kl_coef, unjudged)
                if stop:
                    raise stopping.Stopped

    if dist.is_main():
        log_samples(ctx.tracker, last)
    if average is not None:
        average.put_into(actors.policy.engine.module)
    actors.save(ctx.folder)
    if dist.is_main():
        tokenizer.save_pretrained(ctx.folder / "model")
        shutil.rmtree(ctx.folder / "served", ignore_errors=True)
    dist.barrier()
    generator.close()
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


class Checkpoints:
    """All that an iteration hands to the next: weights, optimisers, averages, alarms, the KL coefficient, every rank's random state.

    What to sample follows from the iteration alone, so no rollout is kept; pass rates and fresh rounds lie in fresh/, whole by themselves.
    Another number of ranks or ZeRO stage goes on from there to the same results, up to rounding.
    """

    def __init__(self, ctx: StageContext, actors: Actors, average: Average | None, alarms: Alarms, reference: Path) -> None:
        self.ctx, self.actors, self.average, self.alarms = ctx, actors, average, alarms
        self.root = ctx.folder / CHECKPOINTS
        self.of = {"reference": outside_digest(reference)}

    def write(self, iteration: int, kl_coef: float, unjudged: int) -> None:
        """All ranks must call it."""
        folder = dist.broadcast_object(checkpoints.begin(self.root, iteration) if dist.is_main() else None)
        assert folder is not None
        for name, engine in self.actors.engines.items():
            engine.save(folder / name)
        random_state.save(folder / f"random_{dist.rank()}.safetensors")
        if dist.is_main():
            if self.average is not None:
                save_file(self.average.weights, folder / "average.safetensors")
            state = {"iteration": iteration, "kl_coef": kl_coef, "unjudged": unjudged, "alarms": self.alarms.state()}
            write_json(folder / "state.json", state | {"wandb": self.ctx.tracker.wandb_id})
            self.ctx.tracker.keep(folder)
        dist.barrier()
        if dist.is_main():
            checkpoints.finish(folder, self.of, keep=self.ctx.config.run.keep_checkpoints)
        dist.barrier()

    def resume(self) -> tuple[int, float, int]:
        """Take up the newest whole one. Returns the iteration to go on from, its KL coefficient, and how many before it were not judged."""
        folder = dist.broadcast_object(checkpoints.newest(self.root, self.of) if dist.is_main() else None)
        if folder is None:
            return 0, self.ctx.settings.kl_coef, 0
        for name, engine in self.actors.engines.items():
            engine.load(folder / name)
        random_state.load(folder / f"random_{dist.rank()}.safetensors")
        if self.average is not None:
            self.average.weights = load_file(folder / "average.safetensors", device=str(self.actors.policy.engine.device))
        state = json.loads((folder / "state.json").read_text())
        self.alarms.load(state["alarms"])
        self.ctx.tracker.restore(folder)
        return int(state["iteration"]), float(state["kl_coef"]), int(state["unjudged"])
