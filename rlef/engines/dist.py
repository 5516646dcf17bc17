"""Ranks and sums over them; without a process group everything is the identity of one process."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

T = TypeVar("T")


def init(device: str = "auto") -> None:
    """Join the process group that torchrun announces; nothing to do for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch_dist.is_initialized():
        on_gpu = _take_gpu(device)
        torch_dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=30))


def announced(device: str = "auto") -> tuple[int, int]:
    """(rank, number of ranks) as torchrun announces them, without a group: for ranks that share files alone. In a group nobody may wait for
    another for longer than its timeout."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    _take_gpu(device)
    return int(os.environ["RANK"]), world


def _take_gpu(device: str) -> bool:
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return on_gpu


def init_single(device: torch.device) -> None:
    """A group of this process alone, for DeepSpeed, which insists on one and on a LOCAL_RANK."""
    if not active():
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = torch_dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        torch_dist.init_process_group(backend, store=store, rank=0, world_size=1)


def active() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    return torch_dist.get_rank() if active() else 0


def world() -> int:
    return torch_dist.get_world_size() if active() else 1


def is_main() -> bool:
    return rank() == 0


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, as a new tensor."""
    return _reduce(tensor, torch_dist.ReduceOp.SUM)


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    return _reduce(tensor, torch_dist.ReduceOp.MAX)


def _reduce(tensor: torch.Tensor, operation: torch_dist.ReduceOp.RedOpType) -> torch.Tensor:
    if not active():
        return tensor
    on_gpu = torch_dist.get_backend() == "nccl" and not tensor.is_cuda
    moved = tensor.cuda() if on_gpu else tensor.clone()
    torch_dist.all_reduce(moved, operation)
    return moved.to(tensor.device)


def any_rank(flag: bool) -> bool:
    """Whether it is true on any rank: all of them get the same answer."""
    return bool(all_reduce_max(torch.tensor(float(flag))))


def all_gather_object(value: T) -> list[T]:
    """Every rank's value, by rank. It is pickled between our own processes; under NCCL all of them pass through each GPU's memory."""
    gathered: list[Any] = [value] * world()
    if world() > 1:
        torch_dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: T) -> T:
    """The main process's value."""
    held: list[Any] = [value]
    if active():
        torch_dist.broadcast_object_list(held)
    return held[0]


def barrier() -> None:
    if active():
        torch_dist.barrier()


def close() -> None:
    """Wait for all ranks, then leave the group: a rank that exits while another still works brings torchrun down on both."""
    if active():
        torch_dist.barrier()
        torch_dist.destroy_process_group()
