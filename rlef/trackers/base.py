"""What a tracking service is handed, and what it must be able to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlef.config import TrackingSection


@dataclass(frozen=True)
class Start:
    """One stage's start, as a service learns of it."""

    stage: str
    kind: str
    root: Path  # the run's directory
    settings: TrackingSection
    parameters: dict[str, Any]  # what the stage does, without addresses and keys
    run_id: str | None = None  # W&B's, of an earlier start


@dataclass(frozen=True)
class Html:
    """A cell of a table in colour, and what a service without colours shows. `markup` is escaped already."""

    markup: str
    plain: str


@dataclass(frozen=True)
class Artifact:
    """What a finished stage leaves."""

    name: str
    type: str
    files: Mapping[str, Path]  # name within the artifact -> where it lies
    aliases: tuple[str, ...]
    metadata: dict[str, Any]


class Backend(Protocol):
    """One stage's run at a tracking service. `step` is always the stage's own, not the service's."""

    have: int  # rows that it kept of an earlier start

    def log(self, row: Mapping[str, float], step: int) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None: ...

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None: ...

    def alert(self, title: str, text: str, step: int) -> None: ...

    def artifact(self, artifact: Artifact) -> None: ...

    def summary(self, values: Mapping[str, float]) -> None: ...

    def finish(self, *, failed: bool) -> None: ...


def plain_rows(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """For a service that shows text alone."""
    return [[cell.plain if isinstance(cell, Html) else cell for cell in row] for row in rows]


def figures(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All finite numbers, however deep they lie: {"ppo": {"pass@1": 0.5}} is ppo/pass@1. Lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", value
