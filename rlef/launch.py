"""Starts a stage: in this process, or under torchrun where the config asks for several."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.ranks import announce_one_rank
from rlef.children import SAVE_S, ChildFailed, run_stage_in
from rlef.config import Config, addresses
from rlef.errors import UserError
from rlef.run_dir import RunDir, write_json
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

if TYPE_CHECKING:
    from rlef.pipeline import Kind


def quiet() -> None:
    """Third-party chatter off; what matters of it becomes an error."""
    for key, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TQDM_DISABLE": "1",  # the bars of loading a GGUF file; ours are rich's
        "PYTHONWARNINGS": "ignore",  # for the processes that torchrun starts
    }.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def run_stage(config: Config, run: RunDir, name: str, folder: Path, inputs: dict[str, str], kind: Kind) -> dict[str, Any]:
    """The stage's result. `inputs` are stage names or outside paths."""
    folders = {key: str(run.stage(source) if source in config.stages else Path(source)) for key, source in inputs.items()}
    shared = kind.distributed or (kind.shares_teacher and config.teacher.kind == "hf")
    if config.launch.processes == 1 or not shared:
        return call(config, run, name, folder, folders, kind.function)
    ranks = ["-m", "rlef.ranks", "--standalone", f"--nproc_per_node={config.launch.processes}"]
    threads = max(1, (os.cpu_count() or 1) // config.launch.processes)
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_S),  # torchrun's own 30 s are too few to save a large model
    }
    try:
        command = [sys.executable, *ranks]
        return run_stage_in(command, config, name, folder, folders, kind.function, tracked=True, environment=environment)
    except ChildFailed as failure:
        if failure.said is not None:
            raise UserError(failure.said) from None
        raise RuntimeError(f"stage {name}: torchrun ended with code {failure.code}; the first traceback above is the cause") from None


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
            "teacher": config.teacher.model_dump(exclude={"base_url", "api_key_env"}),
            "stage": stage.model_dump(
                mode="json",
                exclude={"server": True, "servers": True, "rollout": {"server"}}
                | {key: True for key in ("irm", "prm") if addresses(getattr(stage, key, None))},
            ),
            "inputs": inputs,
        }
        tracker = Tracker.open(name, stage.kind, run.root, config.tracking, parameters, run_id=info["wandb"].get(name))
        if tracker.wandb_id:
            info["wandb"][name] = tracker.wandb_id
            write_json(run.info_file, info)
        tracker.restore(None)  # a stage that goes on from a checkpoint puts its rows back
    if config.launch.deepspeed is not None:
        announce_one_rank()
    try:
        context = StageContext(name, config, stage, {key: Path(value) for key, value in inputs.items()}, folder, tracker, run.journal_file)
        result = getattr(importlib.import_module(module), attribute)(context)
        tracker.summary(result)
        return result
    finally:
        tracker.close()
        _give_back_memory()


def _give_back_memory() -> None:
    """Trainers and their models hang in reference cycles, and glibc keeps what was freed: the next stage's would stand beside them."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
