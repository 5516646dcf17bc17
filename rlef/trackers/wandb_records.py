"""Reads an offline W&B run back record by record, without W&B's servers: what was logged is what `wandb sync` will send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER, START = 32768, 7, 7  # bytes; the file opens with W&B's own 7
WHOLE, LAST = 1, 4  # kinds of a piece that end a record


@dataclass
class Recorded:
    """One .wandb file. Config, summary and artifacts' metadata are parsed; system metrics are rows too."""

    run_id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)  # name -> step metric, kept in the summary beside last
    alerts: list[tuple[str, str]] = field(default_factory=list)  # title, text
    artifacts: list[Any] = field(default_factory=list)  # W&B's ArtifactRecord, those of tables too
    system: list[dict[str, float]] = field(default_factory=list)
    exit_code: int | None = None  # None: the end is missing

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the history those that hold figures, by the names that we gave, with global_step."""
        kept = [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.history]
        return [row for row in kept if all(isinstance(value, int | float) for value in row.values())]

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Name -> what the history holds of it, `path` below files/; of a line its table."""
        return {key: value for row in self.history for key, value in row.items() if isinstance(value, dict) and "path" in value}

    @property
    def outputs(self) -> list[Any]:
        """Artifacts of ours."""
        return [one for one in self.artifacts if one.type != "run_table"]


def read(file: Path) -> Recorded:
    """All records of the file, as far as it is whole: a process that was killed leaves its end unwritten."""
    from wandb.proto import wandb_internal_pb2

    found = Recorded()
    for frame in frames(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(frame)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.group, found.job_type, found.name = run.run_id, run.run_group, run.job_type, run.display_name
            found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            found.history.append(_nested(record.history.item))
        elif kind == "summary":
            _merge(found.summary, _nested(record.summary.update))
        elif kind == "metric":
            options = {name.name for name, value in record.metric.summary.ListFields() if value} - {"last"}
            found.metrics[record.metric.name or record.metric.glob_name] = (record.metric.step_metric, frozenset(options))
        elif kind == "alert":
            found.alerts.append((record.alert.title, record.alert.text))
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "stats":
            found.system.append(_nested(record.stats.item))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def frames(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: in blocks, each piece behind its checksum (4 bytes), length (2) and kind (1)."""
    place, record = START, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        end = place + HEADER + length
        if end > len(data):
            return
        record += data[place + HEADER : end]
        place = end
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def _nested(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = [item.key] if item.key else getattr(item, "nested_key", None) or [item.key]
        place = found
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
