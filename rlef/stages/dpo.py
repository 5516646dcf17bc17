"""DPO on pairs that the learned reward ranks: sample n answers a prompt, pair them, train with TRL; once or round after round."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reward_models import resuming
from rlef.config import DpoStage
from rlef.engines import dist
from rlef.engines.deepspeed_engine import full_state, join
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, model_folder, pick_device
from rlef.records import PairRow, read_jsonl, write_jsonl
from rlef.rl.pairs import Pair, reward_pairs, step_pairs, wrong_steps
from rlef.run_dir import CHECKPOINTS, SHARDS, digest, write_json
from rlef.stages.context import StageContext
from rlef.stages.sampled import ScoredSampler

STAGE_VERSION = 1
SHOWN = 64  # rows of the table for W&B


def run(ctx: StageContext) -> dict:
    """Train the policy of `init`. Writes pairs.jsonl and model/; while it runs, each finished round in a folder of its own."""
    settings: DpoStage = ctx.settings
    dist.init(ctx.config.launch.device)
    join(ctx.config.launch.deepspeed)
    rounds: list[Path] = []
    results: list[dict[str, Any]] = []
    over = dist.broadcast_object((ctx.folder / "model").is_dir())  # a start that was stopped after the last round
    for number in range(settings.rounds):
        folder = ctx.folder / SHARDS / f"round_{number}"
        steps = sum(result["steps"] for result in results)
        done = dist.broadcast_object((folder / "result.json").is_file())
        if not done and (over or not _round(ctx, settings, number, rounds, folder, steps)):
            break  # the policy's answers differ no more; there is one round at least
        if done:
            ctx.tracker.restore(folder)
        rounds.append(folder)
        results.append(json.loads((folder / "result.json").read_text()))
    if dist.is_main():
        pairs = [row for folder in rounds for row in read_jsonl(folder / "pairs.jsonl", PairRow)]
        write_jsonl(ctx.folder / "pairs.jsonl", pairs)
        columns = ("round", "question", "chosen", "rejected", "chosen_reward", "rejected_reward")
        ctx.tracker.table("pairs", columns, [[getattr(row, column) for column in columns] for row in pairs[:SHOWN]])
        if not over:
            (rounds[-1] / "model").rename(ctx.folder / "model")
    dist.barrier()
    return _together(results)


def _round(ctx: StageContext, settings: DpoStage, number: int, before: Sequence[Path], folder: Path, steps: int) -> bool:
    """One round, from the policy of the last: pairs.jsonl, model/ and result.json, written aside, then renamed. False: no pair."""
    init = model_folder(ctx.inputs["init"])
    start = before[-1] / "model" if before else init
    partial = folder.with_name(folder.name + ".partial")

    # 1. Sample and score; every process does the same work, and all hold the main one's samples, hence the same pairs.
    # 2. Best against worst, or a wrong step against a right one.
    pairs, left_out = _pairs(ctx, settings, number, start)
    if not pairs:
        if before:
            return False
        raise UserError(f"{ctx.name}: no prompt gave a pair ({left_out})", fix="lower min_margin, or sample more answers a prompt")
    if dist.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        write_jsonl(partial / "pairs.jsonl", [_row(pair, number) for pair in pairs])
    dist.barrier()

    # 3. Train.
    reference = start if settings.reference == "round" else init
    metrics = _train(ctx, settings, pairs, start, reference, partial, steps)
    if dist.is_main():
        ctx.tracker.keep(partial)
        write_json(partial / "result.json", {"prompts": settings.count, "pairs": len(pairs), "left_out": left_out} | metrics)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    dist.barrier()
    return True


def _pairs(ctx: StageContext, settings: DpoStage, number: int, start: Path) -> tuple[list[Pair], dict[str, int]]:
    sampler = ScoredSampler(ctx, settings, start, number)
    samples = sampler.answers()
    rules = {"min_margin": settings.min_margin, "max_length_ratio": settings.max_length_ratio}
    if settings.pairs == "answers":
        return reward_pairs(samples, **rules)
    wrong, clean = wrong_steps(samples, threshold=settings.step_threshold)
    pairs, left_out = step_pairs(wrong, sampler.retries(wrong, settings.step_samples), threshold=settings.step_threshold, **rules)
    return pairs, left_out | ({"no_wrong_step": clean} if clean else {})


def _together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over rounds; loss and accuracy are the last one's."""
    left_out = sum((Counter(result["left_out"]) for result in results), Counter())
    sums = {key: sum(result[key] for result in results) for key in ("prompts", "pairs", "steps")}
    return results[-1] | sums | {"left_out": dict(left_out), "rounds": len(results)}


def loss_terms(settings: DpoStage) -> dict[str, Any]:
    """The loss as TRL's arguments. With S(d) = -log sigmoid(beta d), conservative DPO is (1-e) S(d) + e S(-d), which TRL does not name; but
    its `robust` is ((1-e) S(d) - e S(-d)) / (1-2e), so that cDPO = 2 (1-e) sigmoid - (1-2e) robust."""
    smoothing = settings.label_smoothing
    weights = {settings.loss: 1.0}
    if settings.loss == "cdpo":
        weights = {"sigmoid": 2 * (1 - smoothing), "robust": 2 * smoothing - 1}
    if settings.nll_weight:
        weights["sft"] = settings.nll_weight
    return {"loss_type": list(weights), "loss_weights": list(weights.values()), "label_smoothing": smoothing, "beta": settings.beta}


def _train(
    ctx: StageContext, settings: DpoStage, pairs: Sequence[Pair], start: Path, reference: Path, folder: Path, steps: int
) -> dict[str, float]:
    """Train `start` on the pairs and save it to folder/model. `steps`: optimiser steps of earlier rounds, for the log."""
    # TRL takes 8 s to import: not before it is needed.
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class PairTrainer(DPOTrainer, resuming.Resumable):
        """TRL's trainer on the sampled token ids themselves: decoding and tokenising again could give others."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    rows = Dataset.from_list(
        [
            {
                "prompt_ids": list(pair.prompt_ids),
                "chosen_ids": list(pair.chosen_ids),
                "rejected_ids": list(pair.rejected_ids),
            }
            for pair in pairs
        ]
    )
    world = dist.world()
    micro = min(settings.micro_batch_size, max(1, settings.batch_size // world))
    trust = ctx.config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    model = load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust)
    arguments = DPOConfig(
        output_dir=str(ctx.folder / CHECKPOINTS / folder.name),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, settings.batch_size // (micro * world)),
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        **loss_terms(settings),
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
        ref_model=load_policy(reference, dtype=ctx.config.model.dtype, trust_remote_code=trust),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[ctx.tracker.trainer_callback("dpo", first=steps)],
    )
    trainer.remove_callback(PrinterCallback)
    tokens = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    of = {"pairs": digest(tokens)}
    with torch.random.fork_rng():
        result = resuming.train(trainer, save_every=settings.save_every, keep=ctx.config.run.keep_checkpoints, of=of)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = full_state(trained)
    if dist.is_main():
        trained.save_pretrained(folder / "model", state_dict=weights)
        tokenizer.save_pretrained(folder / "model")
    unset_hf_deepspeed_config()  # or ZeRO-3 would divide the next round's sampler
    history = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    last = history[-1] if history else {}
    return {
        "loss": result.training_loss,
        "steps": result.global_step,
        "reward_accuracy": float(last.get("rewards/accuracies", float("nan"))),
    }


def _row(pair: Pair, number: int) -> PairRow:
    chosen, rejected, step = pair.chosen.score, pair.rejected.score, pair.step
    return PairRow(
        round=number,
        problem_id=pair.chosen.prompt.problem.id,
        question=pair.chosen.prompt.problem.question,
        prefix=chosen.steps[: step or 0],
        chosen=chosen.text if step is None else chosen.steps[step],
        rejected=rejected.text if step is None else rejected.steps[step],
        chosen_reward=pair.reward(pair.chosen),
        rejected_reward=pair.reward(pair.rejected),
        instruction=chosen.instruction,
    )
