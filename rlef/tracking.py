"""Metrics, tables and progress of a stage: metrics.jsonl always, W&B where the config wants it, bars with time left on the terminal.

All stages log into the run's one metrics.jsonl. A checkpoint keeps its stage's rows, a finished stage does in its folder, and from there
they are put back: what a kill cut off, or what was logged after the checkpoint that a stage goes on from, is never read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef.config import TrackingSection
from rlef.errors import UserError
from rlef.run_dir import METRICS


class Tracker:
    """One stage's tracker. Only the main process logs."""

    def __init__(self, stage: str, file: Path | None, wandb_run: Any = None, *, quiet: bool = False) -> None:
        self.stage, self.file, self.wandb_run, self.quiet = stage, file, wandb_run, quiet
        self.behind = wandb_run is not None and wandb_run.offline  # W&B: a run that goes on offline begins with the rows it has
        self.bars: Any = None  # the terminal takes one display at a time: bars within bars share it

    @classmethod
    def null(cls) -> Tracker:
        """Logs nowhere: for tests and for the processes that do not log."""
        return cls("", None, quiet=True)

    @classmethod
    def open(
        cls, stage: str, kind: str, root: Path, settings: TrackingSection, parameters: dict[str, Any], *, run_id: str | None
    ) -> Tracker:
        """Start tracking a stage of the run in `root`. A W&B run that was asked for and cannot start is an error now, not at the end."""
        return cls(stage, root / METRICS, _start_wandb(stage, kind, root, settings, parameters, run_id))

    @property
    def wandb_id(self) -> str | None:
        return self.wandb_run.id if self.wandb_run is not None else None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One row at `step`. Values that are not finite are written as null: JSON has no NaN."""
        self._catch_up()
        clean = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        if self.file is not None:
            row = {"stage": self.stage, "step": step, "time": round(time.time(), 3)} | clean
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        if self.wandb_run is not None:
            self.wandb_run.log({name: value for name, value in clean.items() if value is not None} | {"global_step": step})

    def keep(self, folder: Path) -> None:
        """Copy this stage's rows into `folder`, from where `restore` puts them back."""
        if self.file is not None:
            keep_rows(self.file, self.stage, folder)

    def restore(self, folder: Path | None) -> None:
        """Have this stage's rows be those that `folder` keeps, None: none. What it logs from here on comes after them."""
        if self.file is None:
            return
        kept = _lines_of(folder / METRICS) if folder is not None else []
        _write(self.file, [*(line for stage, line in _rows(self.file) if stage != self.stage), *kept])

    def _catch_up(self) -> None:
        """Give W&B the rows of an earlier start, once."""
        if not self.behind or self.file is None:
            return
        self.behind = False
        for row in (json.loads(line) for stage, line in _rows(self.file) if stage == self.stage):
            numbers = {name: value for name, value in row.items() if isinstance(value, float) and name != "time"}
            self.wandb_run.log(numbers | {"global_step": row["step"]})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table for W&B; files keep the full rows."""
        if self.wandb_run is not None:
            import wandb

            self.wandb_run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def alert(self, name: str, message: str) -> None:
        """Tell the user now, here and in W&B."""
        if self.file is not None:
            print(f"  alarm: {message}", file=sys.stderr, flush=True)
        if self.wandb_run is not None:
            self.wandb_run.alert(title=f"{self.stage}: {name.replace('_', ' ')}", text=message)

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """A line for W&B, of the second column over the first."""
        if self.wandb_run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self.wandb_run.log({name: wandb.plot.line(table, columns[0], columns[1], title=name)})

    def summary(self, values: dict[str, Any]) -> None:
        if self.wandb_run is not None:
            self.wandb_run.summary.update(values)

    @contextlib.contextmanager
    def progress(self, description: str, total: int, *, done: int = 0) -> Iterator[Callable[..., None]]:
        """A bar with time left; without a terminal a line every 20 seconds. Yields advance(n, **figures to show).

        `done`: of `total` before this start, in no time of its own.
        """
        if self.quiet or total <= done:
            yield lambda n=1, **figures: None
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[info]}"),
            )
            outer = self.bars
            with contextlib.nullcontext(outer) if outer is not None else Progress(*columns, console=Console(stderr=True)) as bar:
                self.bars = bar
                task = bar.add_task(description, total=total, completed=done, info="")
                try:
                    yield lambda n=1, **figures: bar.update(task, advance=n, info=_figures(figures)) if figures else bar.advance(task, n)
                finally:
                    self.bars = outer
                    if outer is not None:
                        bar.remove_task(task)
        else:
            yield _lines(description, total, done)

    def trainer_callback(self, prefix: str, *, first: int = 0, every: int = 1) -> Any:
        """A transformers callback that logs the trainer's numbers as prefix/name and shows a bar. It counts `every` so many optimiser steps
        as one, on from `first`."""
        from transformers import TrainerCallback

        from reward_models.resuming import folder_of

        tracker = self

        class Log(TrainerCallback):
            def __init__(self) -> None:
                self.stack = contextlib.ExitStack()
                self.advance: Callable[..., None] = lambda n=1, **figures: None
                self.seen: dict[str, float] = {}

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.is_world_process_zero:
                    self.advance = self.stack.enter_context(tracker.progress(prefix, state.max_steps, done=state.global_step))
                    if state.global_step:  # goes on from a checkpoint
                        tracker.restore(folder_of(args, state))

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.advance(1, **self.seen)

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.is_world_process_zero:
                    tracker.keep(folder_of(args, state))

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.stack.close()

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
                numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
                named = {_named(prefix, name): value for name, value in numbers.items()}
                if state.is_world_process_zero and "train_runtime" not in numbers:
                    tracker.log(named, first + state.global_step // every)
                    self.seen |= {name: value for name, value in numbers.items() if name in ("loss", "eval_loss")}

        return Log()

    def close(self) -> None:
        self._catch_up()
        if self.wandb_run is not None:
            self.wandb_run.finish()


def _named(prefix: str, name: str) -> str:
    """A Trainer's number in our namespace, where what hangs on the machine's speed stands apart."""
    if name == "learning_rate":
        return "optim/lr"
    group = {"_runtime": "time/", "_per_second": "perf/"}
    space = next((space for end, space in group.items() if name.endswith(end)), "")
    return f"{space}{prefix}/{name.replace('/', '_')}"


def keep_rows(file: Path, stage: str, folder: Path) -> None:
    """Copy a stage's rows of a metrics.jsonl into `folder`."""
    if lines := [line for one, line in _rows(file) if one == stage]:
        _write(folder / METRICS, lines)


def mend(file: Path, finished: Mapping[str, Path]) -> None:
    """Put back the rows of finished stages (name -> folder) where they are not those that the stage kept: the last line may be damaged."""
    rows = list(_rows(file))
    for stage, folder in finished.items():
        kept = _lines_of(folder / METRICS)
        if kept and [line for one, line in rows if one == stage] != kept:
            rows = [row for row in rows if row[0] != stage] + [(stage, line) for line in kept]
    lines = [line for stage, line in rows if (file.parent / stage).is_dir()]
    if lines != _lines_of(file):
        _write(file, lines)


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """(stage, line) of all lines that hold a row."""
    for line in _lines_of(file):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            yield str(json.loads(line)["stage"]), line


def _lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _write(file: Path, lines: Iterable[str]) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    partial.replace(file)


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in figures.items())


def _lines(description: str, total: int, before: int, every: float = 20.0) -> Callable[..., None]:
    state = {"done": before, "next": time.monotonic() + every, "start": time.monotonic()}

    def advance(n: int = 1, **figures: float) -> None:
        state["done"] += n
        now = time.monotonic()
        if now >= state["next"] or state["done"] >= total:
            left = (now - state["start"]) / max(state["done"] - before, 1) * (total - state["done"])
            print(f"  {description}: {int(state['done'])}/{total}, {left:.0f} s left  {_figures(figures)}", file=sys.stderr, flush=True)
            state["next"] = now + every

    return advance


def _start_wandb(stage: str, kind: str, root: Path, settings: TrackingSection, parameters: dict[str, Any], run_id: str | None) -> Any:
    mode = settings.wandb
    if mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    import wandb

    if mode == "offline" and run_id is not None:
        for cut_off in (root / "wandb").glob(f"offline-run-*-{run_id}"):
            # A second folder of one run would be uploaded beside it; what it held is logged again.
            shutil.rmtree(cut_off, ignore_errors=True)
    try:
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or root.name,
            job_type=kind,
            name=f"{root.name}/{stage}",
            id=run_id,
            resume="allow" if run_id and mode == "online" else None,
            dir=str(root),
            mode=mode,  # type: ignore[arg-type]
            config=parameters,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=mode == "offline"),
        )
    except wandb.Error as error:
        raise UserError(f"W&B cannot start ({mode}): {error}", fix="check WANDB_API_KEY, or set tracking.wandb=offline") from None
    run.define_metric("*", step_metric="global_step")
    return run
