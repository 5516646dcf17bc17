"""A process that runs a stage's function, alone or under torchrun: `python -m rlef.worker job.json` (rlef.children starts it)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from reward_models.errors import UserError as RewardModelsError
from rlef.children import end_with_parent
from rlef.engines import dist
from rlef.errors import UserError
from rlef.launch import call, quiet
from rlef.load_config import parse_config
from rlef.run_dir import RunDir, write_json


def main(file: str) -> int:
    quiet()
    end_with_parent()  # ranks wait for one another without a limit
    job = json.loads(Path(file).read_text())
    config = parse_config(job["config"], file)
    folder = Path(job["folder"])
    first = os.environ.get("RANK", "0") == "0"
    run = RunDir(str(config.run.dir))
    try:
        result = call(config, run, job["stage"], folder, job["inputs"], job["function"], main=first and job["tracked"])
    except (UserError, RewardModelsError) as error:
        (folder / "error.txt").write_text(str(error))  # where several ranks make a mistake, they all make this one
        return 2
    if first:
        write_json(folder / "result.json", result)
    dist.close()
    sys.stdout.flush()
    # Threads of gloo and DeepSpeed that outlive the group abort the interpreter on its way out (SIGABRT); the work is done and on disk.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
