"""One SFT stage on this rank's share; argv: folder of the stage, folder of the problems, DeepSpeed JSON or -. The main process prints the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from reward_models.ranks import announce_one_rank
from rlef.config import Config
from rlef.engines import dist
from rlef.stages import sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

folder, problems, json_path = sys.argv[1:4]
torch.set_num_threads(1)
launch = {"device": "cpu", "deepspeed": None if json_path == "-" else json_path}
stage = {"kind": "sft", "data": "seeds", "max_steps": 25, "eval_every": 10, "patience": 1, "batch_size": 16, "micro_batch_size": 4}
stage["save_every"] = 8
random = {"vocab_size": 320, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 96, "max_positions": 256}
config = Config.model_validate({"model": {"random": random}, "stages": {"sft": stage}, "launch": launch})
if json_path != "-":
    announce_one_rank()
result = sft.run(StageContext("sft", config, config.stages["sft"], {"problems": Path(problems)}, Path(folder), Tracker.null()))
if dist.is_main():
    (Path(folder) / "result.json").write_text(json.dumps(result))
dist.barrier()
