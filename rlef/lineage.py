"""What goes into a stage and what comes out of it, under the names that W&B's artifacts have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlef.run_dir import RunDir, digest, folder_digests
from rlef.trackers.base import Artifact, figures

TYPES = {
    "problems": "dataset",
    "method": "method",
    "evolve": "dataset",
    "respond": "dataset",
    "label": "labels",
    "irm": "reward-model",
    "prm": "reward-model",
    "orm": "reward-model",
    "sft": "policy",
    "ppo": "policy",
    "dpo": "policy",
    "grpo": "policy",
    "rft": "policy",
    "evaluate": "evaluation",
    "report": "report",
}
ALIAS_LENGTH = 12  # hexadecimal digits of a fingerprint
MOST_FIGURES = 90  # of a result: W&B's metadata hold 100 keys


@dataclass(frozen=True)
class Edge:
    """A stage's W&B run reads an artifact."""

    stage: str
    run_id: str
    key: str  # the stage's name for it
    artifact: str  # name:alias


def artifact_name(root: Path, stage: str) -> str:
    """W&B takes letters, digits, `-`, `_` and `.`, 128 of them at most."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{root.name}-{stage}")[-128:]


def alias(fingerprint: Mapping[str, str]) -> str:
    return digest(dict(fingerprint))[:ALIAS_LENGTH]


def inputs_of(run: RunDir, name: str, folders: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """Input -> where it lies, the digest of its contents that the stage's fingerprint holds, and the artifact of the stage that made it
    (None: it comes from outside)."""
    fingerprint = run.interrupted(name) or {}
    made: dict[str, dict[str, str | None]] = {}
    for key, folder in folders.items():
        path = Path(folder)
        manifest = run.manifest(path.name) if path.parent == run.root else None
        artifact = f"{artifact_name(run.root, path.name)}:{alias(manifest.fingerprint)}" if manifest is not None else None
        made[key] = {"path": folder, "digest": fingerprint.get(f"input {key}"), "artifact": artifact}
    return made


def output_of(run: RunDir, name: str, kind: str, result: Mapping[str, Any]) -> Artifact:
    """What the stage leaves in its folder. `digest`: what a later stage's fingerprint holds of it; `fingerprint`: of what went in."""
    folder, fingerprint = run.stage(name), run.interrupted(name) or {}
    digests = folder_digests(folder)
    files = {file: folder / file for file in digests}
    if kind == "report" and (page := run.root / "report.html").is_file():
        files[page.name] = page
    told = dict(islice(figures(result), MOST_FIGURES))
    metadata = {"stage": name, "kind": kind, "digest": digest(digests), "fingerprint": digest(fingerprint), "result": told}
    return Artifact(artifact_name(run.root, name), TYPES[kind], files, ("latest", alias(fingerprint)), metadata)


def edges(run: RunDir) -> list[Edge]:
    """Of all finished stages of a run that have a W&B run, by the inputs whose contents are those of a finished stage."""
    ids = run.info()["wandb"]
    done = {name: manifest for name in ids if (manifest := run.manifest(name)) is not None}
    makers = {digest(manifest.files): name for name, manifest in done.items()}
    return [
        Edge(name, ids[name], key.removeprefix("input "), f"{artifact_name(run.root, maker)}:{alias(done[maker].fingerprint)}")
        for name, manifest in done.items()
        for key, value in manifest.fingerprint.items()
        if key.startswith("input ") and (maker := makers.get(value)) is not None and maker != name
    ]
