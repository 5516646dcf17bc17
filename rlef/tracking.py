"""Metrics, tables and progress of a stage: metrics.jsonl always, W&B and others where the config wants it, bars with time left.

All stages log into the run's one metrics.jsonl. A checkpoint keeps its stage's rows, a finished stage does in its folder, and from there
they are put back: what a kill cut off, or what was logged after the checkpoint that a stage goes on from, is never read.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef.config import TrackingSection
from rlef.run_dir import METRICS
from rlef.trackers import tensorboard, trackio, wandb
from rlef.trackers.base import Artifact, Backend, Start, figures
from rlef.views import live

ALERTS = "alerts"  # in a row of metrics.jsonl: name -> what was told


class Tracker:
    """One stage's tracker. Only the main process logs."""

    def __init__(self, stage: str, file: Path | None, backends: Sequence[Backend] = (), *, quiet: bool = False) -> None:
        self.stage, self.file, self.backends, self.quiet = stage, file, backends, quiet
        self.behind = bool(backends)  # a stage that goes on begins with the rows it has
        self.rows, self.step = 0, 0  # logged so far, and the last one's step
        self.bars: Any = None  # the terminal takes one display at a time: bars within bars share it

    @classmethod
    def null(cls) -> Tracker:
        """Logs nowhere: for tests and for the processes that do not log."""
        return cls("", None, quiet=True)

    @classmethod
    def open(
        cls, stage: str, kind: str, root: Path, settings: TrackingSection, parameters: dict[str, Any], *, run_id: str | None
    ) -> Tracker:
        """Start tracking a stage of the run in `root`. What was asked for and cannot start is an error now, not at the end."""
        return cls(stage, root / METRICS, _backends(Start(stage, kind, root, settings, parameters, run_id)))

    @property
    def wandb_id(self) -> str | None:
        return next((backend.id for backend in self.backends if isinstance(backend, wandb.WandbRun)), None)

    def log(self, metrics: dict[str, float], step: int, alerts: Mapping[str, str] | None = None) -> None:
        """One row at `step`. Values that are not finite are written as null: JSON has no NaN. `alerts`: name -> what to tell the user now,
        here and in the services."""
        self._catch_up()
        clean = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        if self.file is not None:
            row = {"stage": self.stage, "step": step, "time": round(time.time(), 3)} | clean | ({ALERTS: dict(alerts)} if alerts else {})
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            for message in (alerts or {}).values():
                print(f"  alarm: {message}", file=sys.stderr, flush=True)
        self._send(clean, step, alerts or {})

    def _send(self, row: Mapping[str, float | None], step: int, alerts: Mapping[str, str]) -> None:
        """To each service what it has not: one that goes on under its id keeps what an earlier start told it."""
        numbers = {name: value for name, value in row.items() if value is not None}
        for backend in self.backends:
            if self.rows >= backend.have:
                backend.log(numbers, step)
                for name, message in alerts.items():
                    backend.alert(f"{self.stage}: {name.replace('_', ' ')}", message, step)
        self.rows, self.step = self.rows + 1, step

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
        """Give the services the rows and alerts of an earlier start, once."""
        if not self.behind or self.file is None:
            return
        self.behind = False
        for row in (json.loads(line) for stage, line in _rows(self.file) if stage == self.stage):
            numbers = {name: value for name, value in row.items() if isinstance(value, float) and name != "time"}
            self._send(numbers, row["step"], row.get(ALERTS, {}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table for the services; files keep the full rows."""
        self._catch_up()
        for backend in self.backends:
            backend.table(name, columns, rows, self.step)

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """A line for the services, of the second column over the first."""
        self._catch_up()
        for backend in self.backends:
            backend.plot(name, columns, rows, self.step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Figures of the whole stage, by the names that `figures` gives them."""
        for backend in self.backends:
            backend.summary(dict(figures(values)))

    def artifact(self, artifact: Artifact) -> None:
        """What the stage leaves, for services that keep it."""
        self._catch_up()
        for backend in self.backends:
            backend.artifact(artifact)

    @contextlib.contextmanager
    def progress(self, description: str, total: int, *, done: int = 0) -> Iterator[Callable[..., None]]:
        """A bar with time left; without a terminal a line every 20 seconds; and the file that `rlef watch` reads. Yields
        advance(n, **figures to show).

        `done`: of `total` before this start, in no time of its own.
        """
        with self._bar(description, total, done) as show, live.told(self.file, self.stage, description, total, done) as tell:

            def advance(n: int = 1, **figures: float) -> None:
                show(n, **figures)
                tell(n)

            yield advance

    @contextlib.contextmanager
    def _bar(self, description: str, total: int, done: int) -> Iterator[Callable[..., None]]:
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

    def close(self, *, failed: bool = False) -> None:
        """`failed`: the stage did not end, and can be gone on with."""
        self._catch_up()
        for backend in self.backends:
            backend.finish(failed=failed)


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


def _backends(one: Start) -> list[Backend]:
    """The services that the config names; each is imported where it is."""
    made: list[Backend] = []
    if "wandb" in one.settings.backends and (run := wandb.start(one)) is not None:
        made.append(run)
    if "tensorboard" in one.settings.backends:
        made.append(tensorboard.start(one))
    if "trackio" in one.settings.backends:
        made.append(trackio.start(one))
    return made
