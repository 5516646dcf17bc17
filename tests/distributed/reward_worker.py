"""A PRM on this rank's share, with early stopping; argv: label file, policy, folder, DeepSpeed JSON or -, further options as JSON."""

from __future__ import annotations

import json
import sys

import torch

from reward_models.config import LoraSettings, ProcessModelConfig
from reward_models.train import TrainOptions, train_process
from rlef.engines import dist

labels, policy, out, json_path = sys.argv[1:5]
further = json.loads(sys.argv[5])
if "lora" in further:
    further["lora"] = LoraSettings(**further["lora"])
torch.set_num_threads(1)
dist.init("cpu")
deepspeed = None if json_path == "-" else json_path
options = TrainOptions(learning_rate=3e-3, batch_size=8, micro_batch_size=4, eval_every=2, patience=2, deepspeed=deepspeed, **further)
train_process(labels, policy, out, ProcessModelConfig(epochs=3), options)
dist.barrier()
