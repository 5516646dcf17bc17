"""PRMs on this rank's share, with early stopping, one after another; argv: label file, policy, folder, then cases as JSON, by their names:
{"deepspeed": JSON, and further options}."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from reward_models.config import LoraSettings, ProcessModelConfig
from reward_models.ranks import announce_one_rank
from reward_models.train import TrainOptions, train_process
from rlef.engines import dist

labels, policy, out, cases = sys.argv[1:5]
torch.set_num_threads(1)
announce_one_rank()
dist.init("cpu")
for name, further in json.loads(cases).items():
    if "lora" in further:
        further["lora"] = LoraSettings(**further["lora"])
    options = TrainOptions(learning_rate=3e-3, batch_size=8, micro_batch_size=4, eval_every=2, patience=2, **further)
    train_process(labels, policy, Path(out, name), ProcessModelConfig(epochs=3), options)
    dist.barrier()
    AcceleratorState._reset_state(reset_partial_state=True)  # the next has another DeepSpeed file, or none
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    unset_hf_deepspeed_config()
