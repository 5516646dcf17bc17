"""Early stopping: looks at development rows while training, keeps the weights that did best, stops when they get no better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from reward_models.errors import UserError


@dataclass
class BestWeights(TrainerCallback):
    """`look` measures the model (greater is better) and `save` writes its weights, both called on all ranks; the first rank decides."""

    look: Callable[[], float]
    save: Callable[[], None]
    every: int  # optimiser steps
    patience: int | None  # looks without improvement after which training ends; None: it never ends early
    file: Path | None = None  # keeps the looks for a training that is resumed
    looks: dict[int, float] = field(default_factory=dict)  # step -> measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.file is not None and self.file.is_file():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            self.looks = {int(step): value for step, value in kept.items() if int(step) <= state.global_step}

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
        if self.file is not None and PartialState().is_main_process:
            self.file.write_text(json.dumps(self.looks), encoding="utf-8")
