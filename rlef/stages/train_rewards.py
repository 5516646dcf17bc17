"""Trains the two reward models on the label stage's files, from the SFT policy's trunk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.train import train_instruction, train_process
from reward_models.trainer import CHECKPOINTS, TrainOptions
from rlef.config import IrmStage, PrmStage, RewardModelSettings
from rlef.engines import dist
from rlef.models import model_folder
from rlef.stages.context import StageContext

STAGE_VERSION = 1
SIDES = ("right", "wrong")


def run_irm(ctx: StageContext) -> dict:
    """Writes model/ with its calibration; returns the metrics on held-out lists."""
    settings: IrmStage = ctx.settings
    own = InstructionModelConfig(**{name: getattr(settings, name) for name in InstructionModelConfig.model_fields})
    result = train_instruction(_labels(ctx, "rankings.jsonl"), *_places(ctx), own, _options(ctx, settings))
    return _logged(ctx, "irm", result)


def run_prm(ctx: StageContext) -> dict:
    """Writes model/; returns the metrics on held-out solutions."""
    settings: PrmStage = ctx.settings  # an orm stage has the same settings, and `outcome`
    own = ProcessModelConfig(**{name: getattr(settings, name) for name in ProcessModelConfig.model_fields})
    result = train_process(_labels(ctx, "steps.jsonl"), *_places(ctx), own, _options(ctx, settings))
    return _logged(ctx, settings.kind, result)


def _labels(ctx: StageContext, name: str) -> Path:
    """The label stage's file of that name; a file of one's own stands for itself."""
    source = ctx.inputs["labels"]
    return source if source.is_file() else source / name


def _places(ctx: StageContext) -> tuple[Any, Any]:
    dist.init(ctx.config.launch.device)
    out = ctx.folder / "model"
    if dist.is_main() and not (out / CHECKPOINTS).is_dir():
        shutil.rmtree(out, ignore_errors=True)
    dist.barrier()
    return model_folder(ctx.inputs["init"]), out


def _options(ctx: StageContext, settings: RewardModelSettings) -> TrainOptions:
    return TrainOptions(
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=ctx.seed,
        callbacks=[ctx.tracker.trainer_callback(ctx.settings.kind)],
        deepspeed=ctx.config.launch.deepspeed,
        eval_every=settings.eval_every,
        patience=settings.patience,
        lora=settings.lora,
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        save_every=settings.save_every,
        keep_checkpoints=ctx.config.run.keep_checkpoints,
    )


def _logged(ctx: StageContext, prefix: str, result: dict[str, Any]) -> dict:
    if "confusion" in result:
        rows = [[truth, *(result["confusion"][f"{truth}_called_{called}"] for called in SIDES)] for truth in SIDES]
        ctx.tracker.table(f"{prefix}/confusion", ["steps that are", *(f"called {called}" for called in SIDES)], rows)
    if result.get("reliability"):
        bins = [[one["probability"], one["share"], one["count"]] for one in result["reliability"]]
        ctx.tracker.plot(f"{prefix}/calibration", ["mean score of a bin", "share right", "count"], bins)
    return result
