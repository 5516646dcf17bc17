"""A model's training state on disk, whole, one file a parameter: any number of ranks, in plain torch or any ZeRO stage, goes on from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as torch_dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reward_models.errors import UserError

State = Mapping[str, torch.Tensor]  # of one parameter: its `weights` in fp32, and AdamW's exp_avg, exp_avg_sq and step once it has stepped


def write(folder: Path, steps: int, parameters: Iterable[State]) -> None:
    """`parameters`: those that are trained, always in the same order. All ranks must call it; the main one writes, one after another, so
    that no process ever holds them all."""
    in_group = torch_dist.is_available() and torch_dist.is_initialized()
    main = not in_group or torch_dist.get_rank() == 0
    if main:
        folder.mkdir(parents=True, exist_ok=True)
    for number, state in enumerate(parameters):
        if main:
            save_file({name: value.contiguous() for name, value in state.items()}, _file(folder, number), metadata={"steps": str(steps)})
    if in_group:
        torch_dist.barrier()


def read(folder: Path, count: int) -> Iterator[State]:
    """The states of `count` parameters, on the CPU."""
    return (load_file(_file(folder, number)) for number in range(count))


def steps_of(folder: Path) -> int:
    """Optimiser steps behind it. Raises UserError where there is none."""
    if not _file(folder, 0).is_file():
        raise UserError(f"{folder}: no training state", fix="delete the folder to start the stage again")
    with safe_open(_file(folder, 0), "pt") as first:
        return int(first.metadata()["steps"])


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"
