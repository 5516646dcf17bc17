"""GRPO and RLOO on the learned reward r_I * r_A: TRL's trainer on our samples, with advantages from each group of answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from transformers import PreTrainedModel, TrainerCallback

from reward_models import resuming
from reward_models.resuming import folder_of
from rlef.config import GrpoStage
from rlef.engines import dist
from rlef.engines.deepspeed_engine import full_state, join
from rlef.models import load_policy, load_tokenizer, model_folder, pick_device, stop_ids
from rlef.records import write_jsonl
from rlef.rl.groups import deviation, relative, rewards_of, to_come
from rlef.rl.monitor import Alarms, sample_metrics
from rlef.rl.sampling import Sample, as_rollout, load_reward, read_prompts, sample_answers, score_answers, take_prompts
from rlef.rl.shown import log_samples
from rlef.rollout.base import SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.run_dir import CHECKPOINTS
from rlef.stages.context import StageContext

STAGE_VERSION = 1
CHECKPOINT_EVERY = 10  # iterations
ALARMS = "alarms.json"  # in a checkpoint
KEPT_ROLLOUTS = 64  # of the last iteration, for the report


class Practice:
    """The iterations' prompts, answers and rewards; of the same settings and seed those of PPO, as long as the policy is the same."""

    def __init__(self, ctx: StageContext, settings: GrpoStage, tokenizer: Any, policy: PreTrainedModel) -> None:
        self.ctx, self.settings, self.pad = ctx, settings, int(tokenizer.pad_token_id)
        stops = stop_ids(tokenizer, policy)
        self.params = SamplingParams(settings.max_tokens, settings.temperature, stops)
        self.reward = load_reward(settings, ctx.inputs, tokenizer, ctx.config.model, stops, ctx.config.launch.rewards_on)
        prompts = read_prompts(ctx.inputs["prompts"], tokenizer, ctx.config.model, use_answers=settings.use_answers)
        taken = (take_prompts(prompts, iteration, settings.prompts_per_iteration, ctx.seed) for iteration in range(settings.iterations))
        self.prompts = list(chain.from_iterable(taken))  # all iterations', in order
        # Before the others take the IRM's room.
        self.reward.settle_instructions([prompt.problem.question for prompt in self.prompts])
        self.alarms, self.samples = Alarms(), list[Sample]()

    def sample(self, places: Sequence[int], policy: PreTrainedModel) -> list[Sample]:
        """Scored answers of `policy` to the prompts at `places`, each named once a sample. Logs what was sampled."""
        settings, ctx = self.settings, self.ctx
        iteration = places[0] // settings.prompts_per_iteration
        chosen = [self.prompts[place] for place in places[:: settings.samples_per_prompt]]
        generator = HFGenerator(policy, self.pad, settings.rollout_batch_size)
        answers = sample_answers(generator, chosen, settings.samples_per_prompt, self.params, seed=ctx.seed, iteration=iteration)
        self.samples = score_answers(self.reward, answers)
        metrics = sample_metrics(self.samples)
        ctx.tracker.log(metrics, iteration + 1, self.alarms.raised(iteration + 1, metrics))
        if dist.is_main():
            rollouts = [as_rollout(sample, iteration + 1) for sample in self.samples[:KEPT_ROLLOUTS]]
            write_jsonl(ctx.folder / "rollouts.jsonl", rollouts)
        return self.samples

    def advantages(self) -> list[list[float]]:
        """A token of the last samples each."""
        settings, samples = self.settings, self.samples
        lengths = [len(sample.completion.tokens) for sample in samples]
        paid = [rewards_of(sample.score, length, settings.form) for sample, length in zip(samples, lengths, strict=True)]
        rewards = [one for one, _ in paid]
        groups = [rewards[start : start + settings.samples_per_prompt] for start in range(0, len(rewards), settings.samples_per_prompt)]
        batch = deviation(_flat(_flat(dist.all_gather_object(rewards)))) if settings.scale_rewards == "batch" else None
        spread = [deviation(_flat(group)) if settings.scale_rewards == "group" else batch for group in groups]
        better = _flat(relative(group, baseline=settings.advantage, divide_by=one) for group, one in zip(groups, spread, strict=True))
        return [to_come(own, slots, length) for own, (_, slots), length in zip(better, paid, lengths, strict=True)]


def _flat(nested: Any) -> list[Any]:
    return list(chain.from_iterable(nested))


class KeptAlarms(TrainerCallback):
    """Alarms that a stage which goes on from a checkpoint has raised before."""

    def __init__(self, alarms: Alarms) -> None:
        self.alarms = alarms

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.alarms.load(json.loads((folder_of(args, state) / ALARMS).read_text(encoding="utf-8")))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (folder_of(args, state) / ALARMS).write_text(json.dumps(self.alarms.state()), encoding="utf-8")


def run(ctx: StageContext) -> dict:
    """Train the policy of `init` on `prompts` against `irm` x `prm`. Writes model/ and rollouts.jsonl, and checkpoints while it runs."""
    # TRL takes 8 s to import: not before it is needed.
    from transformers import PrinterCallback

    settings: GrpoStage = ctx.settings
    dist.init(ctx.config.launch.device)
    join(ctx.config.launch.deepspeed)
    start, trust = model_folder(ctx.inputs["init"]), ctx.config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    policy = load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust)
    practice = Practice(ctx, settings, tokenizer, policy)
    trainer = group_trainer(ctx, settings, practice, policy, tokenizer)
    trainer.remove_callback(PrinterCallback)
    unit = settings.steps_an_iteration  # TRL samples anew after them, which it does after a resume anyway
    result = resuming.train(trainer, save_every=CHECKPOINT_EVERY * unit, keep=ctx.config.run.keep_checkpoints, of={}, unit=unit)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = full_state(trained)
    if dist.is_main():
        log_samples(ctx.tracker, practice.samples)
        trained.save_pretrained(ctx.folder / "model", state_dict=weights)
        tokenizer.save_pretrained(ctx.folder / "model")
    dist.barrier()
    return {
        "iterations": settings.iterations,
        "samples": settings.iterations * settings.prompts_per_iteration * settings.samples_per_prompt,
        "steps": result.global_step,
        "alarms": practice.alarms.since,
    }


def group_trainer(ctx: StageContext, settings: GrpoStage, practice: Practice, policy: PreTrainedModel, tokenizer: Any) -> Any:
    """TRL's GRPOTrainer, which pads, batches, holds to the reference, clips, steps and logs; samples and advantages are ours."""
    from datasets import Dataset
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    class GroupTrainer(GRPOTrainer, resuming.Resumable):
        """A row is the place of its prompt. TRL would sample with the tokenizer's text of it, and knows one advantage an answer."""

        def _generate(self, prompts: list[int]) -> tuple[Any, ...]:
            wrapped: Any = self.model_wrapped
            with unwrap_model_for_generation(wrapped, self.accelerator) as model:
                samples = practice.sample(prompts, cast(PreTrainedModel, model))
            prompt_ids, answers = ([*sample.prompt.ids] for sample in samples), ([*sample.completion.tokens] for sample in samples)
            return list(prompt_ids), list(answers), None, [sample.score.text for sample in samples], None, {}, None, []

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            advantages = torch.zeros_like(output["completion_ids"], dtype=torch.float32)  # (B, T)
            for row, values in enumerate(practice.advantages()):
                advantages[row, : len(values)] = torch.tensor(values)
                if practice.samples[row].score.masked:
                    output["completion_mask"][row] = 0
            return output | {"advantages": advantages}

    def learned_reward(**batch: Any) -> list[float | None]:
        return [sample.score.total for sample in practice.samples]

    world, (step, micro) = dist.world(), settings.step_rows(dist.world())
    arguments = GRPOConfig(
        output_dir=str(ctx.folder / CHECKPOINTS),
        max_steps=settings.iterations * settings.steps_an_iteration,
        num_generations=settings.samples_per_prompt,
        generation_batch_size=step * settings.minibatches * world,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=step // micro,
        num_iterations=settings.epochs,
        shuffle_dataset=False,  # the prompts are in order
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        loss_type=settings.loss_type,
        beta=settings.beta,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear" if settings.lr_decay else "constant_with_warmup",
        warmup_steps=settings.lr_warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.steps_an_iteration,
        save_strategy="no",
        report_to=[],
        seed=ctx.seed,
        bf16=False,
        trust_remote_code=ctx.config.model.trust_remote_code,
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=pick_device(ctx.config.launch.device).type == "cpu",
        deepspeed=ctx.config.launch.deepspeed,
        disable_tqdm=True,
    )
    trainer = GroupTrainer(
        model=policy,
        reward_funcs=[learned_reward],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": place} for place in range(len(practice.prompts))]),
        processing_class=tokenizer,
        callbacks=[ctx.tracker.trainer_callback("grpo", every=settings.steps_an_iteration), KeptAlarms(practice.alarms)],
    )
    reference: Any = trainer.ref_model
    for model in (policy, reference) if reference is not None else (policy,):
        model.register_forward_pre_hook(_own_positions, with_kwargs=True)
    return trainer


def _own_positions(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """TRL pads prompts on the left and passes no positions: a model with learned ones would count the padding."""
    mask = options.get("attention_mask")
    if mask is not None and options.get("position_ids") is None:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return arguments, options
