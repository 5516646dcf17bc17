"""The run directory: the only module that knows where files lie and when a stage counts as done.

A stage is done when its manifest.json exists; it is written last, by rename. The manifest's fingerprint covers the stage's settings,
the contents of its inputs and the stage's version, so a changed key redoes the stage and what follows, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


def write_json(path: Path, value: Any) -> None:
    """Write aside, sync, rename: whole or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below, manifests left out."""
    skipped = {"manifest.json", "started.json"}
    return {
        str(file.relative_to(folder)): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in skipped
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a finished stage leaves: what went in, what came out, how long it took, its part of summary.json."""

    fingerprint: dict[str, str]  # key -> digest or short value
    files: dict[str, str]
    seconds: float
    result: dict[str, Any]


class RunDir:
    """Paths of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def create(self, config: dict[str, Any]) -> None:
        """Make the directory and write the resolved config."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / "config.yaml.partial"
        partial.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        partial.replace(self.root / "config.yaml")

    def stage(self, name: str) -> Path:
        return self.root / name

    @property
    def metrics_file(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.root / "summary.json"

    @property
    def info_file(self) -> Path:
        return self.root / "run.json"

    def manifest(self, name: str) -> Manifest | None:
        """None while the stage is not finished."""
        file = self.stage(name) / "manifest.json"
        return Manifest(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def start(self, name: str, fingerprint: dict[str, str]) -> Path:
        """The stage's folder to work in. What an interrupted start of the very same stage left is kept, so that it can go on from there."""
        folder = self.stage(name)
        marker = folder / "started.json"
        if folder.exists() and not (marker.is_file() and json.loads(marker.read_text()) == fingerprint):
            self.supersede(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(marker, fingerprint)
        return folder

    def finish(self, name: str, fingerprint: dict[str, str], seconds: float, result: dict[str, Any]) -> None:
        """Write the manifest: from here on the stage is done."""
        folder = self.stage(name)
        manifest = {"fingerprint": fingerprint, "files": folder_digests(folder), "seconds": round(seconds, 3), "result": result}
        write_json(folder / "manifest.json", manifest)

    def supersede(self, name: str) -> None:
        """Move a stage's folder away; nothing is overwritten."""
        if self.stage(name).exists():
            target = self.root / "superseded" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.stage(name), target)

    def outputs_digest(self, name: str) -> str:
        """What a later stage's fingerprint holds of this one."""
        manifest = self.manifest(name)
        return digest(manifest.files) if manifest else "unfinished"


def outside_digest(path: str | Path) -> str:
    """Contents of a file or folder outside the run; a hub id stands for itself."""
    path = Path(path)
    if path.is_file():
        return file_digest(path)
    return digest(folder_digests(path)) if path.is_dir() else str(path)
