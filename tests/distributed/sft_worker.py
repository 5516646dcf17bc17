"""One SFT stage on this rank's share; argv: folder of the stage, folder of the problems. The main process prints the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlef.config import Config
from rlef.engines import dist
from rlef.stages import sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

folder, problems = sys.argv[1:3]
torch.set_num_threads(1)
stage = {"kind": "sft", "data": "seeds", "max_steps": 25, "eval_every": 10, "patience": 1, "batch_size": 16, "micro_batch_size": 4}
stage["save_every"] = 8
random = {"vocab_size": 320, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 96, "max_positions": 256}
config = Config.model_validate({"model": {"random": random}, "stages": {"sft": stage}, "launch": {"device": "cpu"}})
result = sft.run(StageContext("sft", config, config.stages["sft"], {"problems": Path(problems)}, Path(folder), Tracker.null()))
if dist.is_main():
    (Path(folder) / "result.json").write_text(json.dumps(result))
dist.barrier()
