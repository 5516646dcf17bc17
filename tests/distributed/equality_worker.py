"""Ten or more optimiser steps of every stage that a Trainer trains, on this rank's share; argv: folder of results, of the policy, of the
inputs, then engines: "torch" first, and DeepSpeed JSONs by path. The main process leaves each stage's folder and the losses of its steps.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from deepspeed.comm import comm
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.train import TrainOptions, train_instruction, train_process
from rlef.config import Config
from rlef.engines import dist
from rlef.rl.reward import RewardFunction
from rlef.stages import dpo, grpo, sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker
from tests.rlef.stages.conftest import score_by_tokens

GRADE = f"{Path(__file__).parents[2] / 'configs' / 'rewards' / 'exact_match.py'}:grade"  # its scores are replaced
STEP = {"batch_size": 8, "micro_batch_size": 2}
SAMPLED = {"irm": "none", "prm": GRADE, "max_tokens": 12}
STAGES = {
    "sft": {"kind": "sft", "data": "seeds", "max_steps": 10, "eval_every": 5, "learning_rate": 1e-3, **STEP},
    "dpo": {
        "kind": "dpo", "count": 45, "rounds": 2, "samples_per_prompt": 3, "epochs": 2, "min_margin": 0.0, "max_length_ratio": 99,
        "learning_rate": 1e-3, **STEP, **SAMPLED,
    },
    "grpo": {
        "kind": "grpo", "iterations": 10, "prompts_per_iteration": 4, "samples_per_prompt": 4, "minibatches": 1, "micro_batch_size": 4,
        "learning_rate": 1e-3, "lr_warmup": 0, **SAMPLED,
    },
}  # fmt: skip
losses: dict[tuple[Trainer, int], float] = defaultdict(float)  # of each step, summed over this rank's micro-batches


def watched(trainer, *arguments, real=Trainer.training_step, **options):
    loss = real(trainer, *arguments, **options)
    losses[trainer, trainer.state.global_step] += float(loss)
    return loss


def train(stage: str, folder: Path, inputs: Path, start: Path, deepspeed: str | None) -> None:
    if stage in STAGES:
        launch = {"device": "cpu", "deepspeed": deepspeed}
        config = Config.model_validate({"model": {"random": {}}, "launch": launch, "stages": {stage: STAGES[stage]}})
        places = {"init": start, "problems": inputs, "prompts": inputs}
        run = {"sft": sft.run, "dpo": dpo.run, "grpo": grpo.run}[stage]
        run(StageContext(stage, config, config.stages[stage], places, folder, Tracker.null()))
        return
    options = TrainOptions(learning_rate=1e-3, deepspeed=deepspeed, **STEP)
    if stage == "irm":
        train_instruction(inputs / "rankings.jsonl", start, folder / "model", InstructionModelConfig(epochs=1), options)
    else:
        train_process(inputs / "steps.jsonl", start, folder / "model", ProcessModelConfig(epochs=1), options)


if __name__ == "__main__":
    out, start, inputs = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    dist.init("cpu")
    RewardFunction.score = lambda self, problems, completions: [score_by_tokens(completion) for completion in completions]
    Trainer.training_step = watched
    for engine in sys.argv[4:]:
        for stage in ("sft", "irm", "prm", "dpo", "grpo"):
            folder = out / Path(engine).stem / stage
            folder.mkdir(parents=True, exist_ok=True)
            losses.clear()
            train(stage, folder, inputs, start, None if engine == "torch" else engine)
            every = [sum(ranks) / dist.world() for ranks in zip(*dist.all_gather_object(list(losses.values())), strict=True)]
            if dist.is_main():
                (folder / "losses.json").write_text(json.dumps(every))
            # As in a process of its own, the next stage finds nothing of this one.
            unset_hf_deepspeed_config()
            gc.collect()
            AcceleratorState._reset_state()
            comm.cdb = None
    dist.barrier()
