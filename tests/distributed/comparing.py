"""What tests over ranks share: processes started, a policy and prompts, shipped DeepSpeed files for small models, the distance of two updates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from rlef.records import Problem, problem_id, write_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(script: str, processes: int, *arguments: object, timeout_s: float = 900) -> None:
    """A script of this folder on so many processes; on one without torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    ranks = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *ranks, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-12000:]  # of several ranks


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
