"""The run directory: the only module that knows where files lie and when a stage counts as done.

A stage is done when its manifest.json exists; it is written last, by rename. The manifest's fingerprint covers the stage's settings,
the contents of its inputs and the stage's version, so a changed key redoes the stage and what follows, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from reward_models.errors import UserError as RewardModelsError
from reward_models.records import file_digest
from reward_models.values import finite
from rlef.errors import UserError
from rlef.holder import Holder

WHOLE_BYTES = 64 * 2**20  # a larger file outside the run is known by its size and both ends: `rlef check` answers in seconds
END_BYTES = 2**20
METRICS = "metrics.jsonl"
# In a stage's folder: why it failed, as the user is told it; the traceback of the first rank to die.
ERROR, FAILURE = "error.txt", "failure.json"
# Folders of a stage that are of no use once it is done: its finished pieces, and what it would go on from.
SHARDS, CHECKPOINTS = "shards", "checkpoints"
CARD = "README.md"  # of a data stage: words about its rows, which nothing reads


def write_json(path: Path, value: Any) -> None:
    """Write aside, sync, rename: whole or absent. What is not finite becomes null: JSON has no NaN."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as handle:
        json.dump(finite(value), handle, indent=2, allow_nan=False)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of the frame holds. Raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise damaged(path, "no JSON object")
    return value


def damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path}: not as it was written ({how:.200})", fix=f"move {path.parent} away: what it holds is made again")


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below but those of the frame, the card and those that go when the stage is done."""
    # training_args.bin holds a folder and a time: the same work done twice would look changed.
    skipped = {"manifest.json", "started.json", "job.json", "result.json", ERROR, FAILURE, "training_args.bin", METRICS}
    return {
        str(file.relative_to(folder)): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in skipped and file.relative_to(folder).parts[0] not in (SHARDS, CHECKPOINTS, CARD)
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
    sha256: str | None = None  # of the rest, where it was written by us


_MANIFEST = TypeAdapter(Manifest)


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
    def summary_file(self) -> Path:
        return self.root / "summary.json"

    @property
    def info_file(self) -> Path:
        return self.root / "run.json"

    def info(self) -> dict[str, Any]:
        """What run.json holds; `wandb`: the W&B run of each stage; `wandb_superseded`: those of work that was redone since.

        Raises UserError where it is damaged.
        """
        found = read_json(self.info_file) if self.info_file.is_file() else {}
        for key, kind in (("wandb", dict), ("wandb_superseded", list)):
            if not isinstance(found.setdefault(key, kind()), kind):
                raise damaged(self.info_file, f"{key} is no {'object' if kind is dict else 'list'}")
        return found

    @property
    def lock_file(self) -> Path:
        return self.root / ".lock"

    @property
    def metrics_file(self) -> Path:
        return self.root / METRICS

    @property
    def journal_file(self) -> Path:
        """What an endpoint answered and what it cost: of the run, not of a stage, so a stage that is redone asks nothing twice."""
        return self.root / "journal.sqlite"

    def manifest(self, name: str) -> Manifest | None:
        """None while the stage is not finished. Raises UserError where it is not as it was written."""
        file = self.stage(name) / "manifest.json"
        if not file.is_file():
            return None
        stored = read_json(file)
        seal = stored.pop("sha256", None)
        if seal is not None and seal != digest(stored):
            raise damaged(file, "its digest is another")
        try:
            return _MANIFEST.validate_python(stored)
        except ValidationError as error:
            first = error.errors()[0]
            raise damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def start(self, name: str, fingerprint: dict[str, str]) -> Path:
        """The stage's folder to work in. What an interrupted start of the very same stage left is kept, so that it can go on from there."""
        folder = self.stage(name)
        if folder.exists() and self.interrupted(name) != fingerprint:
            self.supersede(name)
        folder.mkdir(parents=True, exist_ok=True)
        for told in (ERROR, FAILURE):
            (folder / told).unlink(missing_ok=True)
        write_json(folder / "started.json", fingerprint)
        return folder

    def interrupted(self, name: str) -> dict[str, str] | None:
        """The fingerprint that the stage was last started with; None where it never was."""
        marker = self.stage(name) / "started.json"
        return read_json(marker) if marker.is_file() else None

    def finish(self, name: str, fingerprint: dict[str, str], seconds: float, result: dict[str, Any]) -> None:
        """Write the manifest: from here on the stage is done."""
        folder = self.stage(name)
        manifest = {"fingerprint": fingerprint, "files": folder_digests(folder), "seconds": round(seconds, 3), "result": finite(result)}
        written = json.loads(json.dumps(manifest))  # keys that are numbers become texts
        write_json(folder / "manifest.json", written | {"sha256": digest(written)})
        self.clear(name)

    def clear(self, name: str) -> None:
        """Remove what a finished stage needs no more. Not before its manifest is there: a kill in between would cost all its work."""
        for scratch in (SHARDS, CHECKPOINTS):
            shutil.rmtree(self.stage(name) / scratch, ignore_errors=True)

    def supersede(self, *names: str) -> None:
        """Move these stages' folders away, together under one stamp; nothing is overwritten."""
        if self.info_file.is_file():
            info = self.info()
            old = [info["wandb"].pop(name) for name in names if name in info["wandb"]]  # other work is another W&B run
            write_json(self.info_file, info | {"wandb_superseded": [*info["wandb_superseded"], *old]})
        place = self.root / "superseded" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
        for name in names:
            if self.stage(name).exists():
                place.mkdir(parents=True, exist_ok=True)
                shutil.move(self.stage(name), place / name)

    def fail(self, name: str, error: Exception) -> None:
        """Leave in a stage's folder why it failed, where its ranks have not. A folder without any work is removed, of a run that has no
        other, everything."""
        folder = self.stage(name)
        if not any((folder / told).exists() for told in (ERROR, FAILURE)):
            with contextlib.suppress(OSError):  # a full disk has no room for it
                mistake = isinstance(error, (UserError, RewardModelsError))
                (folder / ERROR).write_text(str(error) if mistake else f"{type(error).__name__}: {error}", encoding="utf-8")
        if {file.name for file in folder.iterdir()} <= {"started.json", "job.json", ERROR, FAILURE}:
            shutil.rmtree(folder)
            # journal.sqlite is not among them: what was paid for stays.
            if {file.name for file in self.root.iterdir()} <= {".lock", "config.yaml", "run.json", "metrics.jsonl", "wandb", "tensorboard"}:
                shutil.rmtree(self.root)

    def missing_files(self, name: str) -> list[str]:
        """Files that a finished stage wrote and that are gone."""
        manifest = self.manifest(name)
        return [file for file in manifest.files if not (self.stage(name) / file).is_file()] if manifest else []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time works in a run directory. The system frees the lock when the process ends, however it ends."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = self.lock_file.open("a", encoding="utf-8")  # what the holder wrote stays where it is another's
        except OSError as error:
            raise UserError(
                f"run.dir: {self.root}: no run can be kept there ({error.strerror})", fix="set run.dir to another folder"
            ) from None
        with lock as handle:
            try:
                # A POSIX lock belongs to this process alone: children that outlive a kill do not hold it.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.root}: another rlef command works in this run directory", fix="wait for it, or set run.dir to another folder"
                ) from None
            Holder.this().write(handle)
            yield

    def outputs_digest(self, name: str) -> str:
        """What a later stage's fingerprint holds of this one."""
        manifest = self.manifest(name)
        return digest(manifest.files) if manifest else "unfinished"


def outside_digest(path: str | Path, only: str | None = None) -> str:
    """Contents of a file or folder outside the run (`only`: that file of it); a hub id stands for itself."""
    path = Path(path)
    if path.is_dir() and only is not None:
        path = path / only
    if path.is_file():
        return _quick_digest(path)
    if not path.is_dir():
        return str(path)
    return digest({str(file.relative_to(path)): _quick_digest(file) for file in _data_files(path)})


def _data_files(folder: Path) -> Iterable[Path]:
    skipped = {"__pycache__", ".git", ".cache"}
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not skipped & set(file.relative_to(folder).parts))


def _quick_digest(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_digest(path)
    with path.open("rb") as handle:
        head = handle.read(END_BYTES)
        handle.seek(-END_BYTES, os.SEEK_END)
        return hashlib.sha256(str(size).encode() + head + handle.read()).hexdigest()
