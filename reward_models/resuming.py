"""Trains by a transformers Trainer that may be killed at any moment: on exactly from its last whole checkpoint; SIGTERM saves one.

With another number of ranks or ZeRO stage, or without DeepSpeed, it goes on to the same results up to rounding.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import broadcast_object_list, reduce
from transformers import Trainer, TrainerCallback

from reward_models import checkpoints, stopping, training_state, zero
from reward_models.errors import UserError

# What Trainers count between two lines of their log, and over all steps: private, and in none of their own checkpoints.
COUNTS = "counted_{}.json"  # a rank's, in a checkpoint
TRAINED = "trained"  # in a checkpoint: the weights that are trained and their optimiser's moments
RATES = "rates.json"  # in a checkpoint: the scheduler's state, and the learning rates of the next step
MOST_SKIPPED = 10  # steps in a row without a finite gradient, at which a training stops
COUNTED = ("_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")


class Resumable(Trainer):
    """Its checkpoints hold what is trained whole, in files of numbers; what is not trained is as it was built. To be named last among a
    trainer's classes."""

    def get_train_dataloader(self) -> Any:
        """Its sampler hears of the epoch when one is gone on with: accelerate then looks for it where it puts its own alone."""
        loader: Any = super().get_train_dataloader()
        shared = loader.batch_sampler
        if isinstance(shared, BatchSamplerShard):
            shared.sampler = shared.batch_sampler.sampler
        return loader

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into a checkpoint, which gets the weights with the optimiser's state, nothing; but it begins here, without what a killed start,
        maybe of more ranks, has left in it."""
        if not _internal_call:
            super().save_model(output_dir)
        elif self.is_world_process_zero():
            shutil.rmtree(str(output_dir), ignore_errors=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        if self.is_deepspeed_enabled:
            states = zero.gather(self.model_wrapped, self._trained())
        else:
            states = ({"weights": weight.detach(), **optimizer.state.get(weight, {})} for weight in self._trained())
        training_state.write(Path(output_dir, TRAINED), self.state.global_step, states)
        if self.is_world_process_zero():
            rates = {"scheduler": scheduler.state_dict(), "next": [group["lr"] for group in optimizer.param_groups]}
            Path(output_dir, RATES).write_text(json.dumps(rates), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights come with the optimiser's state."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # or it would look for DeepSpeed's own
        if self.is_deepspeed_enabled:
            zero.check_optimizer(self.model_wrapped)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        trained, folder = self._trained(), Path(checkpoint, TRAINED)
        training_state.steps_of(folder)
        states = training_state.read(folder, len(trained))
        if self.is_deepspeed_enabled:
            zero.divide(self.model_wrapped, trained, states)
        else:
            _set(optimizer, trained, states)
        rates = json.loads(Path(checkpoint, RATES).read_text(encoding="utf-8"))
        scheduler.load_state_dict(rates["scheduler"])
        for group, rate in zip(optimizer.param_groups, rates["next"], strict=True):
            group["lr"] = rate

    def _trained(self) -> list[torch.nn.Parameter]:
        model: Any = self.model
        return [weight for weight in model.parameters() if weight.requires_grad]


def _set(adam: Any, trained: Sequence[torch.nn.Parameter], states: Iterable[training_state.State]) -> None:
    fused = any(group["fused"] for group in adam.param_groups)  # counts steps on the device
    for weight, state in zip(trained, states, strict=True):
        with torch.no_grad():
            weight.copy_(state["weights"])
        moments = {name: value.to(weight) if name != "step" else value for name, value in state.items() if name != "weights"}
        if fused and moments:
            moments["step"] = moments["step"].to(weight.device)
        if moments:
            adam.state[weight] = moments


def train(trainer: Resumable, *, save_every: int | None, keep: int, of: Mapping[str, str], unit: int = 1) -> Any:
    """`trainer.train()`, on from the newest whole checkpoint in its output folder. All ranks must call it.

    `save_every`: optimiser steps between checkpoints; None: none but at SIGTERM. `keep`: how many stay. `of`: what is trained from what,
    so that another training's are refused (UserError). `unit`: steps that only count together, as those of GRPO on the same answers: it
    is saved between them alone. Callbacks added before may write into the checkpoint when it is saved.
    """
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
