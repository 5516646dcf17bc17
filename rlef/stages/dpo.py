"""DPO on pairs that the learned reward ranks: sample n answers a prompt, keep best against worst, train with TRL."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from rlef.config import DpoStage, RftStage
from rlef.engines import dist
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, model_folder, pick_device, save_policy, stop_ids
from rlef.records import write_jsonl
from rlef.rl.pairs import Pair, reward_pairs
from rlef.rl.sampling import Sample, load_reward, read_prompts, sample_answers, score_answers, take_prompts
from rlef.rollout.base import SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.stages.context import StageContext

STAGE_VERSION = 1
SAMPLING_ITERATION = 0  # part of the noise key; a later round of sampling would use 1, 2, ...


class PairRow(BaseModel):
    """A pair as it is stored for the reader."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    problem_id: str
    question: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    instruction: float


def run(ctx: StageContext) -> dict:
    """Train the policy of `init`. Writes pairs.jsonl and model/."""
    settings: DpoStage = ctx.settings
    dist.init(ctx.config.launch.device)
    start = model_folder(ctx.inputs["init"])
    model_settings = ctx.config.model
    tokenizer = load_tokenizer(start, trust_remote_code=model_settings.trust_remote_code)

    # 1. Sample and score; every process does the same work, and all hold the main one's samples, hence the same pairs.
    samples = sample_scored(ctx, settings)

    # 2. Best against worst.
    pairs, left_out = reward_pairs(samples, min_margin=settings.min_margin, max_length_ratio=settings.max_length_ratio)
    if not pairs:
        raise UserError(f"{ctx.name}: no prompt gave a pair ({left_out})", fix="lower min_margin, or sample more answers a prompt")
    if dist.is_main():
        write_jsonl(ctx.folder / "pairs.jsonl", [_row(pair) for pair in pairs])

    # 3. Train.
    metrics = _train(ctx, settings, pairs, start, tokenizer)
    masked = sum(sample.score.masked for sample in samples)
    return {"prompts": settings.count, "pairs": len(pairs), "left_out": left_out, "masked": masked} | metrics


def sample_scored(ctx: StageContext, settings: DpoStage | RftStage) -> list[Sample]:
    """`samples_per_prompt` scored answers to `count` prompts from the policy of `init`, the same ones on every process."""
    start, trust = model_folder(ctx.inputs["init"]), ctx.config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    policy = load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust, device=pick_device(ctx.config.launch.device))
    stops = stop_ids(tokenizer, policy)
    prompts = read_prompts(ctx.inputs["prompts"], tokenizer, ctx.config.model, use_answers=settings.use_answers)
    chosen = take_prompts(prompts, 0, min(settings.count, len(prompts)), ctx.seed)
    generator = HFGenerator(policy, int(tokenizer.pad_token_id), settings.rollout_batch_size)
    with ctx.tracker.progress(f"{ctx.name}: sample", len(chosen) * settings.samples_per_prompt) as advance:
        answers = sample_answers(
            generator,
            chosen,
            settings.samples_per_prompt,
            SamplingParams(settings.max_tokens, settings.temperature, stops),
            seed=ctx.seed,
            iteration=SAMPLING_ITERATION,
            progress=advance,
        )
    reward = load_reward(settings, ctx.inputs, tokenizer, ctx.config.model, stops, ctx.config.launch.device)
    # A served model's last digits hang on who else asks, and two processes whose scores differ may keep different numbers of pairs.
    samples = dist.broadcast_object(score_answers(reward, answers))
    if all(sample.score.masked for sample in samples):
        raise UserError(
            f"{ctx.name}: not one of {len(samples)} answers could be judged",
            fix=f"see why {ctx.name}.prm or {ctx.name}.irm gives no score; a function that needs `gold` needs use_answers: true",
        )
    return samples


def _train(ctx: StageContext, settings: DpoStage, pairs: list[Pair], start, tokenizer) -> dict[str, float]:
    # TRL takes 8 s to import: not before it is needed.
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class PairTrainer(DPOTrainer):
        """TRL's trainer on the sampled token ids themselves: decoding and tokenising again could give others."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    rows = Dataset.from_list(
        [
            {
                "prompt_ids": list(pair.chosen.prompt.ids),
                "chosen_ids": list(pair.chosen.completion.tokens),
                "rejected_ids": list(pair.rejected.completion.tokens),
            }
            for pair in pairs
        ]
    )
    world = dist.world()
    micro = min(settings.micro_batch_size, max(1, settings.batch_size // world))
    trust = ctx.config.model.trust_remote_code
    model = load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust)
    arguments = DPOConfig(
        output_dir=str(ctx.folder / "trainer"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, settings.batch_size // (micro * world)),
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        beta=settings.beta,
        max_length=None,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        seed=ctx.seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=pick_device(ctx.config.launch.device).type == "cpu",
        deepspeed=ctx.config.launch.deepspeed,
        disable_tqdm=True,
    )
    trainer = PairTrainer(
        model=model,
        ref_model=load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[ctx.tracker.trainer_callback("dpo")],
    )
    trainer.remove_callback(PrinterCallback)
    with torch.random.fork_rng():
        result = trainer.train()
    if arguments.deepspeed:
        trainer.save_model(str(ctx.folder / "model"))
    elif dist.is_main():
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        save_policy(trained, tokenizer, ctx.folder / "model")
    history = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    last = history[-1] if history else {}
    return {
        "loss": result.training_loss,
        "steps": result.global_step,
        "reward_accuracy": float(last.get("rewards/accuracies", float("nan"))),
    }


def _row(pair: Pair) -> PairRow:
    return PairRow(
        problem_id=pair.chosen.prompt.problem.id,
        question=pair.chosen.prompt.problem.question,
        chosen=pair.chosen.score.text,
        rejected=pair.rejected.score.text,
        chosen_reward=pair.chosen.score.answer,
        rejected_reward=pair.rejected.score.answer,
        instruction=pair.chosen.score.instruction,
    )
