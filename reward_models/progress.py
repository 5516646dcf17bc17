"""A line now and then on how far training is, for who waits at a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Steps done, the last loss and the minutes left go to stderr of the first process, after the first step and then every `every_s`."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first, self._told = time.monotonic(), state.global_step, -self.every_s

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        if not state.is_world_process_zero or now - self._told < self.every_s:
            return
        self._told = now
        left = (now - self._began) / (state.global_step - self._first) * (state.max_steps - state.global_step)
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        loss = f", loss {losses[-1]:.3f}" if losses else ""
        print(f"step {state.global_step} of {state.max_steps}{loss}, {left / 60:.1f} minutes left", file=sys.stderr, flush=True)
