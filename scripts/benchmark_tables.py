"""What the benchmarks share: tables of ratios with their bars, environments of peers, and measurements in processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")


@dataclass(frozen=True)
class Line:
    """A line of a table, and whether its bar is met; None without a bar."""

    what: str
    median: float
    least: float
    most: float
    bar: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        spread, met = f"{self.least:.2f} .. {self.most:.2f}", {None: "", True: "met", False: "FAILED"}[self.met]
        return f"{self.what:78} {self.median:7.2f}   {spread:>15}   {self.bar:>7} {met}".rstrip()


def ratio(what: str, ratios: Sequence[float], *, at_least: float | None = None, at_most: float | None = None) -> Line:
    """Of one ratio a repeat. The bar is for the median."""
    middle = statistics.median(ratios)
    line = Line(what, middle, min(ratios), max(ratios))
    if at_least is not None:
        return replace(line, bar=f">= {at_least:.2f}", met=middle >= at_least)
    if at_most is not None:
        return replace(line, bar=f"<= {at_most:.2f}", met=middle <= at_most)
    return line


@dataclass(frozen=True)
class Table:
    title: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()  # with the absolute figures

    def show(self) -> None:
        print(f"\n{self.title}\n{'':78} {'median':>7}   {'least .. most':>15}   {'bar':>7}")
        print("\n".join([*map(str, self.lines), *(f"  {note}" for note in self.notes)]), flush=True)


def speeds(runs: Sequence[dict[str, Any]], tokens: float) -> list[float]:
    return [tokens / run["seconds"] for run in runs]


def over(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Each repeat against its neighbour."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def padding(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Token slots over real tokens."""
    return [run["slots"] / run["real"] for run in runs]


def median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f}"


def by_turns(repeats: int, *sides: Callable[[int], R]) -> list[list[R]]:
    """What each side gave, by repeat; every other repeat goes through the sides in reverse."""
    found: list[list[R]] = [[] for _ in sides]
    for number in range(repeats):
        for side in range(len(sides)) if number % 2 == 0 else reversed(range(len(sides))):
            found[side].append(sides[side](number))
    return found


# ------------------------------------------------------------------------------- environments and processes


def peer_environment(folder: Path, package: str, torch: str) -> str:
    """The Python of an environment with the peer's `package`, made once. torch: what pip is told first."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "installed").is_file():
        print(f"installing {package} into {folder / 'venv'} ...", flush=True)
        venv.create(folder / "venv", with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, *shlex.split(torch)], check=True)  # the peer would take a build with gigabytes of CUDA libraries
        subprocess.run([*pip, package], check=True)
        (folder / "installed").touch()
    return str(python)


def measure(python: str, job: dict[str, Any], folder: Path, script: str = "benchmark_job.py") -> dict[str, Any]:
    """What a fresh process measured of a job of `script`; `folder` is emptied first and gets its files and its log."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "job.json"
    file.write_text(json.dumps(job | {"out": str(folder)}, indent=2))
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"WANDB_MODE": "disabled", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    if job.get("memory"):  # so that what is freed is given back at once: resident is what is held, not what malloc keeps
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [python, str(Path(__file__).with_name(script)), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    (folder / "log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{job['kind']} ended with {done.returncode}; all that it said is in {folder / 'log'}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {folder.parent.name} {folder.name}: {json.dumps(found)}", flush=True)
    return found
