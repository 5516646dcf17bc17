"""trackio, on this machine: a project like W&B's, a run a stage (`trackio show`)."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlef.errors import UserError
from rlef.trackers.base import Artifact, Start, plain_rows


def start(one: Start) -> Trackio:
    """A stage that goes on begins its run anew, with the rows that it has."""
    try:
        trackio: Any = importlib.import_module("trackio")  # where it is missing a type checker would take this file for it
    except ImportError:
        raise UserError("tracking.backends: trackio is not installed", fix="pip install 'rlef[trackio]'") from None
    project, name = one.settings.project, f"{one.root.name}/{one.stage}"
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for our own lines
        with contextlib.suppress(ValueError):  # no such project yet
            for earlier in [run for run in trackio.Api().runs(project) if run.name == name]:
                earlier.delete()
        run = trackio.init(project, name=name, group=one.settings.group or one.root.name, config=one.parameters, embed=False)
    return Trackio(run, trackio)


class Trackio:
    """One stage's run. A line is its table."""

    have = 0

    def __init__(self, run: Any, module: Any) -> None:
        self.run, self.module = run, module

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.run.log(dict(row), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.run.log({name: self.module.Table(columns=list(columns), data=plain_rows(rows))}, step=step)

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None:
        self.table(name, columns, rows, step)

    def alert(self, title: str, text: str, step: int) -> None:
        self.run.alert(title=title, text=f"step {step}: {text}")

    def artifact(self, artifact: Artifact) -> None:
        """It would copy the files: the stage's folder is what keeps them."""

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.log({f"summary/{name}": value for name, value in values.items()})

    def finish(self, *, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.module.finish()
