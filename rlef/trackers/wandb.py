"""Weights & Biases: a group a run directory, a run a stage, each stage's outputs as an artifact and its inputs as digests or edges."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlef.errors import UserError
from rlef.trackers.base import Artifact, Html, Start

CUT_OFF = "cut-off"  # below wandb/: folders of starts that were cut off, where `wandb sync` does not look
SWEEP = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")  # what a sweep's agent sets
# What runs are sorted by, with the best value beside the last. No `*` here: W&B takes either of two globs that fit, at random.
BEST = {
    "reward/total": "max",
    "monitor/exact_match": "max",
    "monitor/reward_gap": "max",
    "ppo/kl": "max",
    "ppo/kl_per_token": "max",
    "ppo/entropy": "min",
    "method/failure_rate": "min",
}


def start(one: Start) -> WandbRun | None:
    """None where it is turned off. A run that cannot start is an error now, not at the end."""
    mode = one.settings.wandb
    if mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    import wandb

    if mode == "offline":
        # What `wandb sync` will need of tables lies in the run, too, and not in the home directory of whoever ran it.
        os.environ.setdefault("WANDB_DATA_DIR", str(one.root.resolve() / "wandb" / "data"))
        if one.run_id is not None:
            set_aside(one.root, one.run_id)
    try:
        with _without_arguments(), _sweep(known=one.settings.sweep_stage == one.stage):
            run = wandb.init(
                project=one.settings.project,
                entity=one.settings.entity,
                group=one.settings.group or one.root.name,
                job_type=one.kind,
                name=f"{one.root.name}/{one.stage}",
                id=one.run_id,
                resume="allow" if one.run_id and mode == "online" else None,
                dir=str(one.root),
                mode=mode,  # type: ignore[arg-type]
                config=one.parameters,
                settings=wandb.Settings(silent=True, console="off"),
            )
    except wandb.Error as error:
        raise UserError(f"W&B cannot start ({mode}): {error}", fix="check WANDB_API_KEY, or set tracking.wandb=offline") from None
    run.define_metric("global_step", hidden=True)
    run.define_metric("*", step_metric="global_step")
    for name, best in (BEST | {f"{one.kind}/{loss}": "min" for loss in ("loss", "eval_loss")}).items():
        run.define_metric(name, step_metric="global_step", summary=f"last,{best}")
    found = WandbRun(run, one.settings.artifact_mb)
    found.use(one.parameters.get("inputs", {}))
    return found


class WandbRun:
    """One stage's W&B run. Every call of `log` is a row of its own and carries the stage's step, which is what charts are drawn over."""

    def __init__(self, run: Any, artifact_mb: float | None) -> None:
        self.run, self.artifact_mb = run, artifact_mb
        self.have = run.starting_step  # 0 offline, where every start is a new file
        self.told: set[str] = set()

    @property
    def id(self) -> str:
        return self.run.id

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.run.log({**row, "global_step": step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.run.log({name: _table(columns, rows), "global_step": step})

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None:
        import wandb

        self.run.log({name: wandb.plot.line(_table(columns, rows), columns[0], columns[1], title=name), "global_step": step})

    def alert(self, title: str, text: str, step: int) -> None:
        """A message to whoever follows the run: of each title the first alone."""
        if title in self.told:
            return
        self.told.add(title)
        self.run.alert(title=title[:63], text=f"step {step}: {text}", level="WARN")  # W&B takes no longer title

    def artifact(self, artifact: Artifact) -> None:
        """Files up to `artifact_mb` are uploaded from where they lie; larger ones are references with a digest: nothing is copied here."""
        if self.artifact_mb is None:
            return
        import wandb

        made = wandb.Artifact(artifact.name, type=artifact.type, metadata=artifact.metadata)
        for name, file in artifact.files.items():
            if file.stat().st_size <= self.artifact_mb * 2**20:
                made.add_file(str(file.resolve()), name=name, policy="immutable", skip_cache=True)
            else:
                made.add_reference(file.resolve().as_uri(), name=name)
        self.run.log_artifact(made, aliases=list(artifact.aliases))

    def use(self, inputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Online, the edges from the artifacts that the stage reads. Offline W&B cannot: scripts/wandb_lineage.py adds them later."""
        if self.run.offline:
            return
        import wandb

        for artifact in {str(one["artifact"]) for one in inputs.values() if one.get("artifact")}:
            try:
                self.run.use_artifact(artifact)
            except (wandb.Error, ValueError) as error:
                told = f"  W&B has no artifact {artifact} ({error}); scripts/wandb_lineage.py adds the edge later"
                print(told, file=sys.stderr, flush=True)

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def finish(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    cells: list[Any] = [[wandb.Html(cell.markup, inject=False) if isinstance(cell, Html) else cell for cell in row] for row in rows]
    return wandb.Table(columns=list(columns), data=cells)


def set_aside(root: Path, run_id: str) -> None:
    """Move what earlier starts wrote offline to where `wandb sync` does not look: it would upload the two over each other (each begins
    at W&B's step 0), and the new start logs again all that still counts."""
    for folder in (root / "wandb").glob(f"offline-run-*-{run_id}"):
        (root / "wandb" / CUT_OFF).mkdir(exist_ok=True)
        shutil.move(folder, root / "wandb" / CUT_OFF / folder.name)


@contextmanager
def _without_arguments() -> Iterator[None]:
    """W&B keeps the command line, where overrides may name addresses that the run's config leaves out."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


@contextmanager
def _sweep(*, known: bool) -> Iterator[None]:
    """Of a sweep's trial one stage's run is known to the sweep, under the id that its agent gave; the others are runs beside it."""
    if SWEEP[0] not in os.environ:
        yield
        return
    import wandb

    wandb.teardown()  # it reads the environment once
    hidden = {} if known else {name: os.environ.pop(name) for name in SWEEP if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden
