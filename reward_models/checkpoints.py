"""The life of a folder of checkpoints: each is written aside, synced, hashed and renamed, the last ones stay, a damaged one is passed over.

A checkpoint is a folder `checkpoint-N` that holds a manifest with the SHA-256 of each of its files; without one it was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reward_models.errors import UserError
from reward_models.records import file_digest

MANIFEST = "checkpoint.json"


def place(root: Path, number: int) -> Path:
    return root / f"checkpoint-{number}"


def begin(root: Path, number: int) -> Path:
    """An empty folder to write checkpoint `number` into; `finish` makes it count."""
    partial = place(root, number).with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(partial: Path, of: Mapping[str, str], *, keep: int) -> Path:
    """Seal what lies in `partial`, give it its name, and keep the last `keep`."""
    seal(partial, of)
    folder = partial.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one of an earlier start, which went on from the one before it
    partial.rename(folder)
    prune(folder, keep=keep)
    return folder


def seal(folder: Path, of: Mapping[str, str]) -> None:
    """Sync all files, then write the manifest: from here on the checkpoint counts. `of`: what it is a checkpoint of, as `newest` asks."""
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest = {"files": _digests(folder, synced=True), "of": dict(of)}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as handle:
        json.dump(manifest | {"sha256": _digest(manifest)}, handle, indent=2)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(folder / MANIFEST)
    _sync([folder / MANIFEST])


def prune(newest: Path, *, keep: int) -> None:
    """Leave `newest` and the `keep` - 1 before it. What has a higher number was passed over as damaged."""
    _sync([newest])
    number = _number(newest)
    whole = [folder for folder in _sealed(newest.parent) if _number(folder) <= number][:keep]
    for folder in newest.parent.glob("checkpoint-*"):
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)


def newest(root: Path, of: Mapping[str, str]) -> Path | None:
    """The last checkpoint of which every byte is as it was written; None where there is none. Which one, and what is damaged, is told on
    stderr.

    Raises UserError where it is one of something else than `of`.
    """
    written = _sealed(root)
    for folder in written:
        damage, made_of = _read(folder)
        if damage is not None:
            print(f"warning: {folder} is damaged ({damage}) and left out", file=sys.stderr, flush=True)
            continue
        if changed := sorted(key for key in made_of.keys() | of.keys() if made_of.get(key) != of.get(key)):
            raise UserError(
                f"{folder}: of a training with other labels or settings ({', '.join(changed)})",
                fix=f"repeat that training as it was, or delete {root}",
            )
        print(f"going on from {folder}", file=sys.stderr, flush=True)
        return folder
    if written:
        print(f"warning: {root} holds no whole checkpoint; beginning anew", file=sys.stderr, flush=True)
    return None


def _sealed(root: Path) -> list[Path]:
    """Those that were finished, the last one first."""
    return sorted((file.parent for file in root.glob(f"checkpoint-*/{MANIFEST}") if not file.parent.suffix), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def _read(folder: Path) -> tuple[str | None, dict[str, str]]:
    """What is wrong with it, and what it is a checkpoint of."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        seal = manifest.pop("sha256")
        expected, made_of = manifest["files"], manifest["of"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read", {}
    if seal != _digest(manifest):
        return f"{MANIFEST} is not as it was written", {}
    found = _digests(folder)
    if missing := sorted(expected.keys() - found.keys()):
        return f"{missing[0]} is missing", {}
    if changed := sorted(name for name in expected if expected[name] != found[name]):
        return f"{changed[0]} is not as it was written", {}
    return None, made_of


def _digests(folder: Path, *, synced: bool = False) -> dict[str, str]:
    """SHA-256 of every file below but the manifest, by name; `synced`: after the disk has it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    if synced:
        _sync(files)
    with ThreadPoolExecutor() as pool:  # hashing frees the interpreter lock
        return {str(file.relative_to(folder)): digest for file, digest in zip(files, pool.map(file_digest, files), strict=True)}


def _sync(paths: Iterable[Path]) -> None:
    """Have the disk hold these files' contents, and the folders they lie in their names."""
    paths = set(paths)
    for path in paths | {path.parent for path in paths}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
