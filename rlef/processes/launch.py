"""Starts a stage: in this process, or under torchrun or DeepSpeed's launcher where the config asks for several, on one machine or many."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.operators import free_builds
from reward_models.ranks import announce_one_rank, free_port
from rlef.children import SAVE_S, Child, ChildFailed, result_of, write_job
from rlef.config import Config, LaunchSection, addresses
from rlef.errors import UserError
from rlef.lineage import alias, inputs_of, output_of
from rlef.run_dir import RunDir, write_json
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

if TYPE_CHECKING:
    from rlef.pipeline import Kind
    from rlef.processes.nodes import Lead


def run_stage(
    config: Config, run: RunDir, name: str, folder: Path, inputs: dict[str, str], kind: Kind, lead: Lead | None = None
) -> dict[str, Any]:
    """The stage's result. `inputs` are stage names or outside paths. `lead`: what tells the other machines, where there are any."""
    folders = {key: str(run.stage(source) if source in config.stages else Path(source)) for key, source in inputs.items()}
    shared = kind.distributed or (kind.shares_teacher and config.teacher.kind == "hf")
    if config.launch.world == 1 or not shared:
        return call(config, run, name, folder, folders, kind.function)
    job, port = write_job(config, name, folder, folders, kind.function, tracked=True), free_port()
    if lead is not None:
        lead.start(name, job, port)
    child = start_ranks(config.launch, 0, port, job)
    try:
        return result_of(lead.wait(child) if lead is not None else child.wait(), folder)
    except ChildFailed as failure:
        if failure.said is not None:
            raise UserError(failure.said) from None
        raise RuntimeError(f"stage {name}: its processes ended with code {failure.code}; the first traceback above is the cause") from None


def start_ranks(launch: LaunchSection, node: int, port: int, job: Path) -> Child:
    """This machine's ranks of a stage. `port`: a free one of node 0."""
    threads = max(1, (os.cpu_count() or 1) // launch.slots[node])
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # a peer without a host name is no matter
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_S),  # torchrun's own 30 s are too few to save a large model
    }
    return Child(
        [sys.executable, "-m", "rlef.processes.ranks", *ranks_words(launch, node, port), "--module", "rlef.processes.worker", str(job)],
        environment,
    )


def ranks_words(launch: LaunchSection, node: int, port: int) -> list[str]:
    """How torchrun, or DeepSpeed's launcher where there is a hostfile, starts one machine's ranks."""
    host, _ = launch.meeting
    if launch.hostfile is not None:
        where = ["--hostfile", launch.hostfile, "--no_ssh", "--node_rank", str(node), "--master_addr", host, "--master_port", str(port)]
        return ["deepspeed", *where, "--no_local_rank", "--quiet"]
    if launch.nodes == 1:
        return ["torchrun", "--standalone", f"--nproc_per_node={launch.processes}"]
    where = [f"--nnodes={launch.nodes}", f"--node_rank={node}", f"--master_addr={host}", f"--master_port={port}"]
    return ["torchrun", *where, f"--nproc_per_node={launch.processes}"]


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
            "inputs": inputs_of(run, name, inputs),
            "fingerprint": alias(run.interrupted(name) or {}),
        }
        tracker = Tracker.open(name, stage.kind, run.root, config.tracking, parameters, run_id=info["wandb"].get(name))
        if tracker.wandb_id:
            info["wandb"][name] = tracker.wandb_id
            write_json(run.info_file, info)
        tracker.restore(None)  # a stage that goes on from a checkpoint puts its rows back
    if config.launch.deepspeed is not None:
        announce_one_rank()
        free_builds()
    done = False
    try:
        context = StageContext(name, config, stage, {key: Path(value) for key, value in inputs.items()}, folder, tracker, run.journal_file)
        result = getattr(importlib.import_module(module), attribute)(context)
        tracker.summary({stage.kind: result})
        if tracker.backends:
            tracker.artifact(output_of(run, name, stage.kind, result))
        done = True
        return result
    finally:
        tracker.close(failed=not done)
        _give_back_memory()


def _give_back_memory() -> None:
    """Trainers and their models hang in reference cycles, and glibc keeps what was freed: the next stage's would stand beside them."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
