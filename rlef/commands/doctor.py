"""`rlef doctor`: what this machine is."""

from __future__ import annotations

import argparse
import os
import time


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("doctor", help="show versions, cores, memory, GPUs", epilog="example: rlef doctor")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import importlib.metadata
    import platform
    import shutil

    import torch

    print(f"python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    for name in ("rlef", "torch", "transformers", "trl", "deepspeed", "datasets", "wandb", "vllm"):
        try:
            print(f"  {name:14}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:14}not installed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"memory {memory:.1f} GiB, disk free {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}")
    print(f"W&B: {'online (key in the environment)' if os.environ.get('WANDB_API_KEY') else 'offline'}")
    print(f"matmul: {gflops():.0f} GFLOP/s (fp32, {torch.get_num_threads()} threads)")
    return 0


def gflops(size: int = 1024, repeats: int = 20) -> float:
    """Median speed of an fp32 matrix product on the CPU, so that times can be held against a machine."""
    import torch

    a = torch.randn(size, size)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[repeats // 2] / 1e9
