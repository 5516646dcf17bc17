"""`rlef convert`: streams a JSONL file or data set from one format of `rlef.formats` to another; rows that cannot go are set aside."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.nearest import meant, meant_path
from rlef.errors import UserError
from rlef.formats import FORMATS, Format
from rlef.records import SetAside
from rlef.sources import dataset_rows

LOOKED_AT = 20  # rows that decide on the format


@dataclass(frozen=True)
class Line:
    """A row of the source as it stands, and read: `row` is None where it is no JSON object, and `error` says why."""

    number: int  # 1-based
    text: str
    row: dict[str, Any] | None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of the rows of the source."""

    source: Format
    recognised: bool  # False: the user named it
    rows: int
    written: int
    aside: int
    first: SetAside | None


def convert(
    source: str,
    target: str | Path,
    *,
    to: str,
    of: str | None = None,
    subset: str | None = None,
    split: str = "train",
    limit: int | None = None,
    force: bool = False,
) -> Outcome:
    """Write `target` in the format `to`, and beside it `*.bad.jsonl` where a row could not go. `of`: the source's format, None to find out.

    Both files are whole or absent. Raises UserError for formats that do not exist or fit, files in the way, and where no row can go.
    """
    target = Path(target)
    aside = side_file(target)
    wanted = _format(to, "--to")
    given = None if of is None else _format(of, "--from")
    if wanted.write is None:
        raise UserError(f"--to {to}: can be read, not written", fix=f"use one of: {', '.join(_targets(wanted))}")
    if given is not None:
        _check_kinds(given, wanted)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise UserError(f"{target}: source and target are one file", fix="give another name; what cannot go would be lost")
    in_the_way = [str(file) for file in (target, aside) if file.exists()]
    if in_the_way and (not force or target.is_dir()):
        fix = "give a file" if target.is_dir() else "give another name, or --force to replace it"
        raise UserError(f"{' and '.join(in_the_way)}: there already", fix=fix)

    lines = _lines(source, subset=subset, split=split)
    lines = lines if limit is None else itertools.islice(lines, limit)
    start = list(itertools.islice(lines, LOOKED_AT))
    form = given or _recognised(source, [line.row for line in start if line.row is not None])
    _check_kinds(form, wanted)
    name = source if Path(source).is_file() else f"{source}/{split}"
    rows, written, set_aside, first = _stream(itertools.chain(start, lines), name, form, wanted, target, aside)
    if not written:
        reason = f"line {first.line}: {first.error}" if first else "it is empty"
        raise UserError(f"{source}: no row can become {to} ({reason})", fix=f"check the file and --from ({form.name})")
    return Outcome(form, given is None, rows, written, set_aside, first)


def side_file(target: Path) -> Path:
    """Where the rows go that cannot go to `target`."""
    return target.with_name(target.name.removesuffix(".jsonl") + ".bad.jsonl")


def _format(name: str, option: str) -> Format:
    if name not in FORMATS:
        raise UserError(f"{option} {name}: no such format{meant(name, FORMATS)}", fix=f"known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _targets(form: Format) -> list[str]:
    return [other.name for other in FORMATS.values() if other.kind == form.kind and other.write is not None]


def _check_kinds(form: Format, wanted: Format) -> None:
    if form.kind != wanted.kind:
        raise UserError(
            f"{form.name} ({form.kind}) cannot become {wanted.name} ({wanted.kind})",
            fix=f"{form.name} can become: {', '.join(_targets(form))}",
        )


def _recognised(source: str, rows: Sequence[dict[str, Any]]) -> Format:
    """The format of most of the first rows."""
    found = Counter(name for row in rows for name, form in FORMATS.items() if form.recognise(row))
    if not found:
        keys = (
            f"its first row has {', '.join(map(str, rows[0])) or 'no key'}"
            if rows
            else f"none of its first {LOOKED_AT} lines is a JSON object"
        )
        raise UserError(f"{source}: no known format ({keys})", fix=f"name it by --from; known: {', '.join(FORMATS)}")
    return FORMATS[found.most_common(1)[0][0]]


# ------------------------------------------------------------------------------------------------ reading


def _lines(source: str, *, subset: str | None, split: str) -> Iterator[Line]:
    if Path(source).is_file():
        return _jsonl(Path(source))
    if not Path(source).exists() and Path(source).suffix in (".json", ".jsonl"):
        raise UserError(f"{source}: no such file{meant_path(source)}", fix="check the path, or give a folder or hub id of a data set")
    rows = dataset_rows(source, subset=subset, split=split)
    return (_of_a_data_set(number, row) for number, row in enumerate(rows, 1))


def _of_a_data_set(number: int, row: dict[str, Any]) -> Line:
    try:
        return Line(number, json.dumps(row, ensure_ascii=False, allow_nan=False), row)
    except (ValueError, TypeError) as error:  # not a number, images, dates
        return Line(number, json.dumps(row, ensure_ascii=False, default=str), None, f"no JSON can hold it: {error}")


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if number == 1 and raw.startswith(b"["):
                raise UserError(f"{path}: a JSON array", fix=f"make it JSONL: jq -c '.[]' {path.name} > {path.stem}.jsonl")
            if raw:
                text = raw.decode("utf-8", errors="backslashreplace")
                try:
                    row = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
                    if b"\\ud" in raw.lower():  # half a character, which no text can hold
                        json.dumps(row, ensure_ascii=False).encode()
                    yield Line(number, text, row) if isinstance(row, dict) else Line(number, text, None, "not a JSON object")
                except (ValueError, RecursionError) as error:
                    yield Line(number, text, None, f"not JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(
            f"the key {next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)!r} stands there twice"
        )
    return row


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


# ------------------------------------------------------------------------------------------------ writing


def _stream(
    lines: Iterable[Line], name: str, form: Format, wanted: Format, target: Path, aside: Path
) -> tuple[int, int, int, SetAside | None]:
    """Counts of rows read, written and set aside, and the first of the latter. One row is held at a time."""
    rows = written = set_aside = 0
    first = None
    partial = [file.with_name(file.name + ".partial") for file in (target, aside)]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial[0].open("wb") as good, partial[1].open("wb") as bad:
            for line in lines:
                rows += 1
                made, error = _converted(line, form, wanted)
                good.writelines(made)
                written += len(made)
                if error:
                    row = SetAside(file=name, line=line.number, error=error, text=line.text)
                    bad.write(json.dumps(row.model_dump(), ensure_ascii=False).encode() + b"\n")
                    set_aside, first = set_aside + 1, first or row
            for handle in (good, bad):
                handle.flush()
                os.fsync(handle.fileno())
        # Where no row could go nothing is left: the message names the first, and the mended command finds no file in its way.
        for file, temporary, kept in zip((target, aside), partial, (written, set_aside), strict=True):
            if kept and written:
                temporary.replace(file)
            elif written:  # an older side file, which --force replaces
                file.unlink(missing_ok=True)
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)
    return rows, written, set_aside, first


def _converted(line: Line, form: Format, wanted: Format) -> tuple[list[bytes], str]:
    """The lines that a row becomes, and what is wrong with it. Of several records in a row, those that can go do."""
    assert wanted.write is not None
    if line.row is None:
        return [], line.error
    made, errors = [], []
    try:
        records = form.read(line.row)
    except (ValueError, RecursionError) as error:
        return [], str(error)
    for record in records:
        try:
            made.append(json.dumps(wanted.write(record), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except (ValueError, RecursionError) as error:
            errors.append(str(error))
    if errors and len(records) > 1:
        return made, f"{len(errors)} of the {len(records)} rows that it makes: {errors[0]}"
    return made, "".join(errors)
