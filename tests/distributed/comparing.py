"""What tests over ranks share: processes started, a policy and prompts, shipped DeepSpeed files for small models, the distance of two updates."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

from reward_models.ranks import free_port
from rlef.records import Problem, problem_id, write_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


# What every rank would import for seconds; a server that has it forks them.
IMPORTED = ["deepspeed", *(f"rlef.stages.{stage}" for stage in ("sft", "dpo", "grpo", "ppo", "train_rewards"))]


def start(script: str, processes: int, *arguments: object, timeout_s: float = 500) -> None:
    """A script of this folder on so many ranks, which find what torchrun would tell them; on one, nothing. Real launchers: test_processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setenv("DS_ACCELERATOR", "cpu")  # the server's, which is started once
        patched.syspath_prepend(ROOT)
        told = [Path(folder, f"{rank}.txt") for rank in range(processes)]
        words = [str(HERE / script), *map(str, arguments)]
        ranks = [
            context.Process(target=_rank, args=(words, place(rank, processes, port), told[rank]), daemon=True) for rank in range(processes)
        ]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + timeout_s
        while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks) and time.monotonic() < end:
            wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=max(0.0, end - time.monotonic()))
        time.sleep(1.0 if any(rank.exitcode for rank in ranks) else 0.0)  # another may be about to say why
        for rank in ranks:
            rank.kill()
            rank.join()
        shown = "\n".join(file.read_text(errors="replace")[-6000:] for file in told if file.is_file())
        assert all(rank.exitcode == 0 for rank in ranks), f"{[rank.exitcode for rank in ranks]}\n{shown}"


def place(rank: int, processes: int, port: int) -> dict[str, str]:
    """As torchrun tells a rank of one machine."""
    if processes == 1:
        return {}
    counts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {name: str(count) for name, count in counts.items()}


def _rank(words: list[str], environment: dict[str, str], told: Path) -> None:
    with told.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    sys.argv[:] = words
    runpy.run_path(words[0], run_name="__main__")


def ending(policy: Path, folder: Path) -> Path:
    """A copy in `folder` of a policy, whose answers end."""
    copy = shutil.copytree(policy, folder / "start")
    habits = json.loads((copy / "generation_config.json").read_text())
    habits["eos_token_id"] = [habits["eos_token_id"], *range(20, 80)]
    (copy / "generation_config.json").write_text(json.dumps(habits))
    return copy


def prompts(folder: Path) -> Path:
    """A file in `folder` of twelve problems."""
    questions = [f"Ann has {a} pens. Ben has {b} more. How many?" for a in range(3) for b in range(4)]
    file = folder / "prompts.jsonl"
    write_jsonl(file, [Problem(id=problem_id(question), question=question, answer="1") for question in questions])
    return file


def divided(name: str, folder: Path) -> str:
    """A copy in `folder` of the shipped file of that name, which would leave a small model whole."""
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = folder / f"{name}.json"
    file.write_text(json.dumps(settings))
    return str(file)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], began: dict[str, torch.Tensor]) -> float:
    """The length of the difference of two updates over that of the first; a head that `began` lacks counts in the difference alone."""
    assert one.keys() == other.keys()
    difference = torch.cat([(one[name] - other[name]).flatten() for name in one])
    update = torch.cat([(one[name] - began[name]).flatten() for name in one if name in began])
    return (difference.norm() / update.norm()).item()
