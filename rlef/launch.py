"""Starts a stage: in this process, or under torchrun where the config asks for several."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlef.config import Config
from rlef.errors import UserError
from rlef.run_dir import RunDir, write_json
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

if TYPE_CHECKING:
    from rlef.pipeline import Kind


def run_stage(config: Config, run: RunDir, name: str, folder: Path, inputs: dict[str, str], kind: Kind) -> dict[str, Any]:
    """The stage's result. `inputs` are stage names or outside paths."""
    folders = {key: str(run.stage(source) if source in config.stages else Path(source)) for key, source in inputs.items()}
    if config.launch.processes == 1 or not kind.distributed:
        return call(config, run, name, folder, folders, kind.function)
    job = {"config": config.model_dump(mode="json"), "stage": name, "folder": str(folder), "inputs": folders, "function": kind.function}
    file = folder / "job.json"
    (folder / "error.txt").unlink(missing_ok=True)
    write_json(file, job)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={config.launch.processes}",
        "-m",
        "rlef.worker",
        str(file),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}, check=False)
    answer = folder / "result.json"
    if done.returncode != 0 or not answer.is_file():
        if (folder / "error.txt").is_file():
            raise UserError((folder / "error.txt").read_text())
        raise RuntimeError(f"stage {name}: torchrun ended with code {done.returncode}; the first traceback above is the cause")
    result = json.loads(answer.read_text())
    for leftover in (file, answer):
        leftover.unlink()
    return result


def call(
    config: Config, run: RunDir, name: str, folder: Path, inputs: dict[str, str], function: str, *, main: bool = True
) -> dict[str, Any]:
    """Run the stage's function in this process, tracked where this is the main one."""
    stage = config.stages[name]
    module, attribute = function.split(":")
    tracker = Tracker.null()
    if main:
        info = json.loads(run.info_file.read_text()) if run.info_file.is_file() else {"wandb": {}}
        parameters = {
            "run": config.run.model_dump(),
            "model": config.model.model_dump(),
            "stage": stage.model_dump(mode="json"),
            "inputs": inputs,
        }
        tracker = Tracker.open(name, stage.kind, run.root, config.tracking, parameters, run_id=info["wandb"].get(name))
        if tracker.wandb_id:
            info["wandb"][name] = tracker.wandb_id
            write_json(run.info_file, info)
        tracker.truncate(-1 if stage.kind != "ppo" else 10**12)  # PPO drops its own rows when it knows where it resumes
    try:
        context = StageContext(name, config, stage, {key: Path(value) for key, value in inputs.items()}, folder, tracker)
        result = getattr(importlib.import_module(module), attribute)(context)
        tracker.summary(result)
        return result
    finally:
        tracker.close()
