"""Trainings one after another on these ranks; argv: a folder with policy/, the data and DeepSpeed files, then a KIND/NAME:ZERO:FROM:STOP each.

KIND: sft, prm, dpo. ZERO: a DeepSpeed file's name. FROM: an earlier one, from whose checkpoints it goes on. STOP: the step in which the main
rank gets SIGTERM. Each of the last three may be empty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from reward_models import stopping
from reward_models.config import ProcessModelConfig
from reward_models.ranks import announce_one_rank
from reward_models.train import TrainOptions, train_process
from rlef.config import Config
from rlef.engines import dist
from rlef.stages import dpo, sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

root = Path(sys.argv[1])
STAGES: dict[str, dict[str, Any]] = {
    "sft": {
        "data": "seeds",
        "max_steps": 12,
        "eval_every": 6,
        "batch_size": 8,
        "micro_batch_size": 2,
        "save_every": 2,
        "learning_rate": 3e-3,
    },
    "dpo": {"epochs": 4.0, "batch_size": 8, "micro_batch_size": 2, "save_every": 2, "learning_rate": 1e-3},
}
PAIRS: Any = [SimpleNamespace(prompt_ids=(5, 6, n), chosen_ids=(7, n, 8), rejected_ids=(9, 8, n, 7)) for n in range(10, 34)]


def train(kind: str, out: Path, deepspeed: str | None) -> None:
    """The model comes to lie in out, or in out/model."""
    if kind == "prm":
        options = TrainOptions(learning_rate=3e-3, batch_size=8, micro_batch_size=2, save_every=2, deepspeed=deepspeed)
        train_process(root / "steps.jsonl", root / "policy", out, ProcessModelConfig(epochs=2), options)
        return
    launch = {"device": "cpu", "deepspeed": deepspeed}
    config = Config.model_validate(
        {"model": {"path": str(root / "policy")}, "stages": {kind: STAGES[kind] | {"kind": kind}}, "launch": launch}
    )
    ctx = StageContext(kind, config, config.stages[kind], {"problems": root}, out, Tracker.null())
    if kind == "sft":
        sft.run(ctx)
    else:
        dpo._train(ctx, ctx.settings, PAIRS, root / "policy", root / "policy", out, 0)


def tell_to_stop(patched: pytest.MonkeyPatch, at: int) -> None:
    real_step = torch.optim.lr_scheduler.LambdaLR.step

    def stepped(self: Any, *arguments: Any) -> None:
        real_step(self, *arguments)
        if self.last_epoch == at and dist.is_main():
            os.kill(os.getpid(), signal.SIGTERM)

    patched.setattr(torch.optim.lr_scheduler.LambdaLR, "step", stepped)


def run(name: str, zero: str, earlier: str, stop: str) -> None:
    out = root / name
    if dist.is_main() and earlier:
        before = out.parent / earlier
        found = list(before.rglob("checkpoint-*"))
        assert found
        for folder in found:
            shutil.copytree(folder, out / folder.relative_to(before))
    dist.barrier()
    stopping.listen()
    with pytest.MonkeyPatch.context() as patched, pytest.raises(stopping.Stopped) if stop else contextlib.nullcontext():
        if stop:
            tell_to_stop(patched, int(stop))
        train(out.parent.name, out, str(root / f"{zero}.json") if zero else None)
    dist.barrier()
    AcceleratorState._reset_state(reset_partial_state=True)  # the next has another DeepSpeed file, or none
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    unset_hf_deepspeed_config()


torch.set_num_threads(1)
announce_one_rank()
dist.init("cpu")
for word in sys.argv[2:]:
    run(*word.split(":"))
