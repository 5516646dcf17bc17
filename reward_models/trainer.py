"""Fits a reward model on transformers' Trainer: losses normalised over the whole optimiser step, adapters, early stopping, resuming."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from reward_models import adapters, resuming
from reward_models.config import LoraSettings
from reward_models.data import SortedSteps, blanks
from reward_models.early_stopping import BestWeights
from reward_models.model import Tokenizer, build
from reward_models.operators import free_builds
from reward_models.ranks import announce_one_rank

CHECKPOINTS = "checkpoint"
# A resumed training may have these otherwise.
FREE = ("callbacks", "save_every", "keep_checkpoints", "micro_batch_size", "gradient_checkpointing", "deepspeed")


@dataclass(frozen=True)
class TrainOptions:
    """How to optimise. Sizes are in ranked lists (IRM) or problems with their solutions (PRM); `batch_size` is that of an optimiser step
    over all processes."""

    learning_rate: float = 1e-4
    batch_size: int = 32
    micro_batch_size: int = 8  # rows of a forward, alike in length: a quarter of a step's rows pads far less than all of them
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    callbacks: Sequence[TrainerCallback] = ()
    deepspeed: str | None = None  # path of a DeepSpeed JSON
    lora: LoraSettings | None = None  # the model is saved merged, and its adapter beside it
    bf16: bool = False  # products in bfloat16; losses and (but under DeepSpeed, which keeps copies) weights in fp32
    gradient_checkpointing: bool = False  # less memory, more time
    save_every: int | None = None  # optimiser steps between checkpoints in out/checkpoint, to go on from; None: none but at SIGTERM
    keep_checkpoints: int = 2  # where the newest is damaged, the one before is used
    eval_every: int | None = None  # optimiser steps between looks at a tenth of the rows, which then is not trained on; None: no look
    patience: int | None = None  # looks without improvement after which training ends; None: it goes on, and the best weights are kept


@dataclass(frozen=True)
class Start:
    """What a training begins from; the same call gives the same model, but for the head."""

    kind: str  # "instruction" or "process"
    init: str | Path
    separator: str | None = None

    def build(self) -> tuple[PreTrainedModel, Tokenizer]:
        return build(self.kind, self.init, separator=self.separator)


def fit(
    start: Start,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    data: list[dict[str, Any]],
    collate: Callable[..., Any],
    loss_sum: Callable[..., torch.Tensor],
    epochs: float,
    out: str | Path,
    options: TrainOptions,
    look: Callable[[PreTrainedModel], float],
    identity: dict[str, Any],
) -> tuple[bool, BestWeights | None]:
    """Train `model`, which `start` built, and save it to `out`; with `eval_every` as it was at the best `look`. Whether this is the main
    process, which alone goes on, and the looks.

    Raises UserError where out/checkpoint holds one of a training with another `identity` (labels, settings) or other options.
    """
    if options.deepspeed:
        announce_one_rank()
        free_builds()
    world = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun says; the process group may begin with the Trainer's arguments
    micro = max(1, min(options.micro_batch_size, options.batch_size // world))
    weights = Path(out, adapters.FOLDER) if options.lora else Path(out)
    trained: Any = model
    if options.lora:
        unseen = [tokenizer.convert_tokens_to_ids(start.separator)] if start.separator else []
        trained = adapters.adapted(start.kind, model, options.lora, unseen)
    arguments = TrainingArguments(
        output_dir=str(Path(out, CHECKPOINTS)),
        num_train_epochs=epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, options.batch_size // (micro * world)),
        warmup_steps=options.warmup_ratio,
        lr_scheduler_type="cosine",
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        logging_steps=5,
        save_strategy="no",
        bf16=options.bf16,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        deepspeed=options.deepspeed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = _GlobalCountTrainer(
        model=trained, args=arguments, train_dataset=data, data_collator=collate, loss_sum=loss_sum, callbacks=list(options.callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    looks = None
    if options.eval_every is not None:
        looks = BestWeights(
            partial(_look, trainer, look),
            partial(trainer.save_model, str(weights)),
            options.eval_every,
            options.patience,
        )
        trainer.add_callback(looks)
    of = _identity(identity, options)
    resuming.train(trainer, save_every=options.save_every, keep=options.keep_checkpoints, of=of)
    if looks is None:
        trainer.save_model(str(weights))
    if not trainer.is_world_process_zero():
        return False, None
    unset_hf_deepspeed_config()  # or ZeRO-3 would split what is loaded from here on too, and wait for the other ranks
    for folder in {Path(out), weights}:
        Path(folder, "training_args.bin").unlink(missing_ok=True)  # a pickle of the Trainer, with paths of this machine
    if options.lora:
        adapters.merged(start.build()[0], weights).save_pretrained(out)
        tokenizer.save_pretrained(weights)
    tokenizer.save_pretrained(out)
    return True, looks


class _GlobalCountTrainer(resuming.Resumable):
    """Hands the global count of `labels` entries to a loss that returns a sum. Ranks get equally many micro-batches, by blank rows."""

    def __init__(
        self,
        *,
        args: TrainingArguments,
        train_dataset: list[dict[str, Any]],
        loss_sum: Callable[[PreTrainedModel, dict[str, Any]], torch.Tensor],
        **kwargs: Any,
    ) -> None:
        filling = blanks(train_dataset, args.train_batch_size * args.world_size) if args.world_size > 1 else []
        # A loss function must be set for the Trainer to count; compute_loss below replaces it.
        filled: Any = [*train_dataset, *filling]
        super().__init__(args=args, train_dataset=filled, compute_loss_func=lambda *_args, **_kwargs: None, **kwargs)
        self.loss_sum, self.blank = loss_sum, len(filling)

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedSteps:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        step_rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SortedSteps([row["length"] for row in rows], step_rows, self.args.seed, self.blank)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        # Ranks average their gradients, hence the factor.
        return self.loss_sum(model, inputs) * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)


def _look(trainer: Trainer, look: Callable[[PreTrainedModel], float]) -> float:
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    value = look(trained)
    trained.train()  # scoring has set it to eval
    trainer.log({"development": value})
    return value


def _identity(identity: dict[str, Any], options: TrainOptions) -> dict[str, str]:
    """What a checkpoint must be of to be gone on from."""
    how = {name: value for name, value in vars(options).items() if name not in FREE}
    return {name: json.dumps(value, sort_keys=True, default=_plain) for name, value in (identity | how).items()}


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
