"""Early stopping: looks at development rows while training, keeps the weights that did best, stops when they get no better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from reward_models.errors import UserError
from reward_models.resuming import folder_of

LOOKS = "looks.json"  # in a checkpoint


@dataclass
class BestWeights(TrainerCallback):
    """`look` measures the model (greater is better) and `save` writes its weights, both called on all ranks; the first rank decides."""

    look: Callable[[], float]
    save: Callable[[], None]
    every: int  # optimiser steps
    patience: int | None  # looks without improvement after which training ends; None: it never ends early
    looks: dict[int, float] = field(default_factory=dict)  # step -> measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = folder_of(args, state) / LOOKS
        if state.global_step and file.is_file():
            self.looks = {int(step): value for step, value in json.loads(file.read_text(encoding="utf-8")).items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (folder_of(args, state) / LOOKS).write_text(json.dumps(self.looks), encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step % self.every == 0:
            self._take(state.global_step)
            looked = list(self.looks)
            if self.patience is not None and len(looked) - 1 - looked.index(self.best_step) >= self.patience:
                control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.looks:
            self._take(state.global_step)

    @property
    def best_step(self) -> int:
        """The first of the best."""
        return max(self.looks, key=lambda step: self.looks[step])

    def _take(self, step: int) -> None:
        value = [self.look()]
        broadcast_object_list(value)
        if math.isnan(value[0]):
            raise UserError(
                "early stopping: the development rows (a tenth of those to train on) hold too little to measure by",
                fix="give more rows of both kinds, or leave eval_every out",
            )
        self.looks[step] = value[0]
        if self.best_step == step:
            self.save()
