"""After `wandb sync`: what W&B cannot record offline, the edge from each artifact to the stage that read it, and which runs are out of date.

    wandb sync RUN/wandb/offline-run-*
    python scripts/wandb_lineage.py RUN --entity ENTITY [--dry-run]

RUN is a run directory. The edges come from its manifests: an input whose digest is that of a finished stage is that stage's artifact,
under the alias of its fingerprint. Runs of stages that were redone since get the tag "superseded". What is there is left; what is missing
at the server is told, and for an edge the exit code is 1. With --dry-run all is printed, and neither key nor network is needed. `--project`:
the one of RUN/config.yaml by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from rlef.errors import UserError
from rlef.lineage import Edge, edges
from rlef.run_dir import RunDir

SUPERSEDED = "superseded"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--entity")
    parser.add_argument("--project")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(words)
    try:
        found, old = edges(RunDir(options.run)), RunDir(options.run).info()["wandb_superseded"]
        if not found:
            raise UserError(f"{options.run}: no finished stage with a W&B run reads another", fix="name a run directory that W&B tracked")
        tracking = yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf-8"))["tracking"]
        project, entity = options.project or tracking["project"], options.entity or tracking["entity"]
        if entity is None and not options.dry_run:
            raise UserError("whose project?", fix="add --entity NAME")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.dry_run:
        print("\n".join(f"{edge.artifact} -> {edge.stage} ({edge.run_id}) as {edge.key}" for edge in found))
        print("".join(f"{run_id}: {SUPERSEDED}\n" for run_id in old), end="")
        return 0
    import wandb

    api, place = wandb.Api(), f"{entity}/{project}"
    missing, unknown = add(api, place, found), tag(api, place, old)
    print(
        f"{len(found) - len(missing)} of {len(found)} edges are at W&B, {len(old) - len(unknown)} of {len(old)} superseded runs are tagged"
    )
    print("".join(f"  not found: {one}\n" for one in missing + unknown), file=sys.stderr, end="")
    return 1 if missing else 0  # what was redone need not have been synced


def add(api: Any, project: str, found: Sequence[Edge]) -> list[str]:
    """Add what is not there yet. Returns what the server does not know."""
    missing = []
    for run_id, group in groupby(found, key=lambda edge: edge.run_id):
        wanted = list(group)
        run = _asked(api.run, f"{project}/{run_id}")
        if isinstance(run, Exception):
            missing += [f"{edge.stage} ({run_id}): {run}" for edge in wanted]
            continue
        there = {artifact.id for artifact in run.used_artifacts()}
        for edge in wanted:
            artifact = _asked(api.artifact, f"{project}/{edge.artifact}")
            if isinstance(artifact, Exception):
                missing.append(f"{edge.artifact}, which {edge.stage} reads: {artifact}")
            elif artifact.id not in there:
                run.use_artifact(artifact)
                there.add(artifact.id)
    return missing


def tag(api: Any, project: str, old: Sequence[str]) -> list[str]:
    """Tag runs whose work was redone. Returns those that the server does not know."""
    unknown = []
    for run_id in old:
        run = _asked(api.run, f"{project}/{run_id}")
        if isinstance(run, Exception):
            unknown.append(f"{run_id}: {run}")
        elif SUPERSEDED not in run.tags:
            run.tags = [*run.tags, SUPERSEDED]
            run.update()
    return unknown


def _asked(get: Callable[[str], Any], path: str) -> Any:
    """What the server has at `path`, or the error by which it says that it has nothing."""
    from wandb.errors import CommError

    try:
        return get(path)
    except (CommError, ValueError) as error:
        return error


if __name__ == "__main__":
    raise SystemExit(main())
