"""Reads a label file of any known shape: our own strictly, another project's row by row, with the rows that cannot be read set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reward_models.errors import UserError
from reward_models.formats import steps
from reward_models.formats.base import Row
from reward_models.formats.lists import is_preference, read_preference
from reward_models.records import RankedList, SteppedSolution, read_records

RECORDS: dict[str, Any] = {"irm": RankedList, "prm": SteppedSolution}
OWN = "own"


@dataclass(frozen=True)
class Labels:
    """The rows of a label file."""

    rows: list[Any]  # RankedList (irm) or SteppedSolution (prm)
    shape: str = OWN  # or the name of another project's
    set_aside: list[str] = field(default_factory=list)  # "line 3: why", of rows of a foreign shape that could not be read


def read_labels(path: str | Path, kind: Literal["irm", "prm"]) -> Labels:
    """The first row tells the shape: our own, or ProcessBench, PRM800K, Math-Shepherd, TRL's stepwise rows (prm); RewardBench or TRL's
    preference rows (irm).

    Raises UserError where the file is missing or has no usable row, and at the first bad line of a file of our own shape.
    """
    shape, read = _shape(Path(path), kind)
    if read is None:
        return Labels(read_records(path, RECORDS[kind]))
    rows: list[Any] = []
    set_aside: list[str] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):  # as read_records does
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
                rows += read(row)
            except ValueError as error:  # json's own is one too
                set_aside.append(f"line {number}: {error}")
    if not rows:
        raise UserError(f"{path}: no row of shape {shape} could be read ({set_aside[0]})", fix="mend that line, or give another file")
    return Labels(rows, shape, set_aside)


def _shape(path: Path, kind: str) -> tuple[str, Callable[[Row], list[Any]] | None]:
    """Name of the first row's shape and its reader; None where it is our own or none that is known, whose mistakes read_records names."""
    if not path.is_file():
        return OWN, None
    with path.open(encoding="utf-8-sig") as handle:
        first = next((line for line in handle if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return OWN, None
    if isinstance(row, dict) and kind == "irm" and is_preference(row):
        return "preference", read_preference
    if isinstance(row, dict) and kind == "prm":
        found = next((one for one in steps.FORMATS if one.name != "steps" and one.recognise(row)), None)
        if found is not None:
            return found.name, found.read
    return OWN, None
