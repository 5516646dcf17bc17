"""Trains by a transformers Trainer that may be killed at any moment: on exactly from its last whole checkpoint; SIGTERM saves one."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from transformers import Trainer, TrainerCallback

from reward_models import checkpoints, stopping
from reward_models.errors import UserError

# What Trainers count between two lines of their log, and over all steps: private, and in none of their own checkpoints.
COUNTS = "counted_{}.json"  # a rank's, in a checkpoint
MOST_SKIPPED = 10  # steps in a row without a finite gradient, at which a training stops
COUNTED = ("_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")


def train(trainer: Trainer, *, save_every: int | None, keep: int, of: Mapping[str, str], unit: int = 1) -> Any:
    """`trainer.train()`, on from the newest whole checkpoint in its output folder. All ranks must call it.

    `save_every`: optimiser steps between checkpoints; None: none but at SIGTERM. `keep`: how many stay. `of`: what is trained from what,
    so that another training's are refused (UserError). `unit`: steps that only count together, as those of GRPO on the same answers: it
    is saved between them alone. Callbacks added before may write into the checkpoint when it is saved.
    """
    if trainer.args.deepspeed:  # its checkpoints are in as many parts, and of one form a stage; without it any number of ranks goes on
        plugin: Any = trainer.accelerator.state.deepspeed_plugin
        of = {**of, "processes": str(PartialState().num_processes), "ZeRO stage": str(plugin.zero_stage)}
    root = Path(str(trainer.args.output_dir))
    start = _newest(root, of)
    trainer.add_callback(_Finite())
    trainer.add_callback(_Checkpoints(trainer, save_every, keep, of, unit))
    with stopping.deferred():
        return trainer.train(resume_from_checkpoint=str(start) if start is not None else None)


def _newest(root: Path, of: Mapping[str, str]) -> Path | None:
    """As the main rank finds it: all go on from the same one, or make the same mistake."""
    found: list[Path | UserError | None] = [None]
    if PartialState().is_main_process:
        try:
            found = [checkpoints.newest(root, of)]
        except UserError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


def folder_of(args: Any, state: Any) -> Path:
    """Where a Trainer writes the checkpoint of its present step, or has read it from."""
    return checkpoints.place(Path(args.output_dir), state.global_step)


class _Finite(TrainerCallback):
    """Skips a step whose gradient is not finite, which would take all weights along, and says so; DeepSpeed steps by itself."""

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = [weight for weight in model.parameters() if weight.grad is not None]
        # Summed up before the number comes to this processor once; ranks have the same gradients, and agree.
        if not trained or bool(torch.stack([weight.grad.float().norm() for weight in trained]).sum().isfinite()):
            self.in_a_row = 0
            return
        for weight in trained:
            weight.grad = None  # an optimiser passes over what has none
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if state.is_world_process_zero and self.in_a_row == 1:
            said = f"step {state.global_step + 1} was skipped: its gradient was not finite ({self.skipped} so far)"
            print(f"  warning: {said}", file=sys.stderr, flush=True)
        if self.in_a_row == MOST_SKIPPED:
            raise UserError(
                f"{MOST_SKIPPED} steps in a row, up to {state.global_step + 1}, had no finite gradient; all were skipped",
                fix="lower the learning rate, or train without bf16; the weights from before are in the last checkpoint, if there is one",
            )


class _Checkpoints(TrainerCallback):
    """The last callback: seals what the Trainer and the callbacks before it have written."""

    def __init__(self, trainer: Trainer, save_every: int | None, keep: int, of: Mapping[str, str], unit: int) -> None:
        self.trainer, self.save_every, self.keep, self.of, self.unit, self.stop = trainer, save_every, keep, of, unit, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder_of(args, state).glob(COUNTS.format("*")))]
        if not state.global_step or not counts:
            return
        trainer = vars(self.trainer)
        if len(counts) == PartialState().num_processes:
            counted = counts[PartialState().process_index]
        else:  # the loss that is logged is a mean over ranks, all else is the same on all of them
            counted = counts[0] | {"loss": sum(one["loss"] for one in counts) / len(counts)}
        trainer["_tr_loss"] += counted.pop("loss")
        trainer["_initial_global_step"] = 0  # the mean loss is over all steps
        if "_metrics" in trainer:
            trainer["_metrics"]["train"] = defaultdict(list, counted.pop("metrics"))
        trainer |= counted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.unit:
            return
        self.stop = _any_rank(stopping.asked())
        if self.stop or (self.save_every and state.global_step % self.save_every == 0):
            control.should_save = True
        self._not_at_the_end(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._not_at_the_end(control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder, trainer = folder_of(args, state), vars(self.trainer)
        counted = {name: trainer[name] for name in COUNTED if name in trainer} | {"loss": trainer["_tr_loss"].item()}
        if "_metrics" in trainer:
            counted["metrics"] = trainer["_metrics"]["train"]
        (folder / COUNTS.format(f"{PartialState().process_index:05}")).write_text(json.dumps(counted), encoding="utf-8")
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.seal(folder, self.of)
            checkpoints.prune(folder, keep=self.keep)
        PartialState().wait_for_everyone()
        if self.stop:
            raise stopping.Stopped

    @staticmethod
    def _not_at_the_end(control: Any) -> None:
        """A Trainer that goes on from its last step trains one more."""
        if control.should_training_stop:
            control.should_save = False


def _any_rank(flag: bool) -> bool:
    state = PartialState()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device), "sum"))
