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
from reward_models.records import RankedList, SteppedSolution, numbered_lines, read_records

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
    lines = numbered_lines(path)
    shape, read = _shape(lines[0][1] if lines else "", kind)
    if read is None:
        return Labels(read_records(path, RECORDS[kind]))
    rows: list[Any] = []
    set_aside: list[str] = []
    for number, line in lines:
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
            rows += read(row)
        except (ValueError, RecursionError) as error:  # json's own are these
            set_aside.append(f"line {number}: {error}")
    if not rows:
        raise UserError(f"{path}: no row of shape {shape} could be read ({set_aside[0]})", fix="mend that line, or give another file")
    return Labels(rows, shape, set_aside)


def _shape(first: str, kind: str) -> tuple[str, Callable[[Row], list[Any]] | None]:
    """Name of the first row's shape and its reader; None where it is our own or none that is known, whose mistakes read_records names."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return OWN, None
    if isinstance(row, dict) and kind == "irm" and is_preference(row):
        return "preference", read_preference
    if isinstance(row, dict) and kind == "prm":
        found = next((one for one in steps.FORMATS if one.name != "steps" and one.recognise(row)), None)
        if found is not None:
            return found.name, found.read
    return OWN, None
