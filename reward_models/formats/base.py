"""What a format is, and the columns of a row: taken with their types, carried along, compared.

What a record has and a foreign format does not stands in one column of ours, as the difference from what the row would be read as
without it: `{"set": {..}, "unset": [..]}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

Row = dict[str, Any]
Kind = Literal["judged steps", "conversations", "preference pairs"]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Format:
    """`read`: a row to its records (several where a row holds several solutions); `write`: a record to a row. Both raise ValueError.
    `write` is None for what can be read alone."""

    name: str
    kind: Kind
    recognise: Callable[[Row], bool]
    read: Callable[[Row], list[Any]]
    write: Callable[[Any], Row] | None


def has(row: Row, **kinds: type) -> bool:
    """Whether the row has these columns with these types."""
    return all(isinstance(row.get(key), kind) for key, kind in kinds.items())


def take(row: Row, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    if key not in row:
        raise ValueError(f"no {key}")
    if not isinstance(row[key], kind) or (isinstance(row[key], bool) and kind is int):
        raise ValueError(f"{key} is no {what}")
    return row[key]


def text_at(row: Row, key: str) -> str:
    return take(row, key, str, "text")


def text_list(row: Row, key: str) -> tuple[str, ...]:
    values = take(row, key, list, "list")
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is no list of texts")
    return tuple(values)


def without(row: Row, *known: str) -> Row:
    return {key: value for key, value in row.items() if key not in known}


def with_extra(own: Row, extra: Row) -> Row:
    """A format's own columns, then the others."""
    taken = [key for key in extra if key in own]
    if taken:
        raise ValueError(f"its column {taken[0]} would take the place of the format's own")
    return own | extra


def difference_of(row: Row, base: Row) -> Row:
    """What makes `base` to `row`; empty where they are equal."""
    changed = {key: value for key, value in row.items() if key not in base or base[key] != value}
    missing = [key for key in base if key not in row]
    return ({"set": changed} if changed else {}) | ({"unset": missing} if missing else {})


def patched(base: Row, difference: Any, column: str, fixed: Sequence[str]) -> Row:
    """`base` with a difference that a column holds. It cannot change what the format itself says."""
    changed = difference.get("set", {}) if isinstance(difference, dict) else None
    missing = difference.get("unset", []) if isinstance(difference, dict) else None
    if not isinstance(changed, dict) or not isinstance(missing, list) or {*changed, *map(str, missing)} & {*fixed, "extra"}:
        raise ValueError(f"{column} is no difference as `rlef convert` writes it")
    return without(base, *map(str, missing)) | changed


def validated(record: type[M], row: Row) -> M:
    """Strictly: "1" is no number, so that nothing changes in silence."""
    try:
        return record.model_validate_json(json.dumps(row), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
