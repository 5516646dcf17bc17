"""Scores a JSONL file of any size: part by part, by any number of ranks, and after a kill from where it stood.

A part is a few hundred lines. One rank scores it, with nothing from outside it, into a file that is named by the digest of what it is made
of: those lines, the model, the settings. So its bytes are the same whoever makes it and when (on one kind of device, with as many
threads), and what was made of another input or by another model is never taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch.distributed

from reward_models import __version__
from reward_models.errors import UserError
from reward_models.instruction import InstructionRewardModel
from reward_models.nearest import meant_path
from reward_models.process import ProcessRewardModel, aggregate
from reward_models.serving.models import digest, pick_device
from reward_models.steps import split_steps, until_answer

Row = dict[str, Any]
PART_BYTES = 4 * 2**20  # of the input, but for a single longer line
BARRIER = timedelta(days=30)  # a rank may have much more to do than another; torchrun ends all where one fails
TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class ScoreOptions:
    """What to score, with what, and how. Rows have `text` (irm), else `question` and `steps` or `text`."""

    kind: Literal["irm", "prm", "orm"]
    model: str
    input: Path
    output: Path
    delimiter: str = "\n"  # what ends a step in `text`
    answer_marker: str | None = None  # steps of `text` behind the first that holds it are not scored, as in RL
    part_rows: int = 512
    batch_size: int = 64
    device: str = "auto"


@dataclass(frozen=True)
class Part:
    """Consecutive lines of the input: where they are, what they are, and how many of them can be scored."""

    start: int  # byte
    size: int  # bytes
    sha256: str
    rows: int


def score_file(options: ScoreOptions, load: Callable[[str], InstructionRewardModel | ProcessRewardModel]) -> dict[str, Any]:
    """Writes options.output: the rows in order, each with its scores. Returns what was done, {} on other ranks than the first.

    Lines that cannot be scored go to OUTPUT.set_aside.jsonl with number and reason. Raises UserError where there is no other.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # 1. Read the input once, before any model loads: its parts, and the lines to set aside.
    parts, set_aside = _survey(options, main=rank == 0)
    # 2. Every rank makes its share of the parts that are not there yet.
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=BARRIER)
    model = load(pick_device(options.device))
    folder = _beside(options.output, ".parts")
    folder.mkdir(exist_ok=True)
    made_by = _made_by(options, model)
    files = [folder / f"{_digest(part.sha256, made_by)}.jsonl" for part in parts]
    shares = list(dict(zip(files, parts, strict=True)).items())  # equal lines are one file, made by one rank
    told = 0.0
    for number in range(rank, len(shares), world):
        file, part = shares[number]
        if _read_part(file) is None:
            _write_part(file, *_scored(list(_rows(options, part)), options, model))
        if rank == 0 and (time.monotonic() - told > TELL_EVERY_S or number + world >= len(shares)):
            told = time.monotonic()
            print(f"scored part {number + 1} of {len(shares)}", file=sys.stderr, flush=True)
    # 3. The first joins them all, in the order of the input.
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank > 0:
        return {}
    counts: Counter[str] = Counter()
    _write(options.output, _joined(files, counts))
    shutil.rmtree(folder)
    return {"rows": sum(part.rows for part in parts), "output": str(options.output), "set_aside": set_aside, **counts}


# --------------------------------------------------------------------------------------------- the input


def _survey(options: ScoreOptions, *, main: bool) -> tuple[list[Part], int]:
    """The parts of the input, and how many lines were set aside; `main` writes them down. Raises UserError where no row is left."""
    if not options.input.is_file():
        raise UserError(f"{options.input}: no such file{meant_path(options.input)}", fix="check --input")
    aside = _beside(options.output, ".set_aside.jsonl")
    first, count, parts = "", 0, []
    # Other ranks only count.
    with open(_partial(aside) if main else os.devnull, "w", encoding="utf-8") as handle:
        for start, lines in _pieces(options):
            rows = 0
            for number, line in lines:
                try:
                    rows += _row(line, options.kind) is not None
                except ValueError as error:
                    first, count = first or f"line {number}: {error}", count + 1
                    told = {"line": number, "reason": str(error), "text": line.decode("utf-8", "backslashreplace").rstrip("\r\n")}
                    handle.write(json.dumps(told, ensure_ascii=False) + "\n")
            data = b"".join(line for _, line in lines)
            parts.append(Part(start, len(data), hashlib.sha256(data).hexdigest(), rows))
    if main and count:
        _partial(aside).replace(aside)
    elif main:
        _partial(aside).unlink()
        aside.unlink(missing_ok=True)  # of an earlier input
    if not any(part.rows for part in parts):
        raise UserError(f"{options.input}: no row that can be scored ({first or 'it is empty'})", fix="mend its rows, or give another file")
    if main and count:
        print(f"{count} lines set aside in {aside}, the first: {first}", file=sys.stderr, flush=True)
    return parts, count


def _pieces(options: ScoreOptions) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """Consecutive lines (number, bytes) in pieces, and the byte at which each piece begins."""
    start = size = 0
    piece: list[tuple[int, bytes]] = []
    with options.input.open("rb") as handle:
        for number, line in enumerate(handle, 1):  # bytes: U+2028 and others may stand inside a JSON text
            if piece and (len(piece) == options.part_rows or size + len(line) > PART_BYTES):
                yield start, piece
                start, size, piece = start + size, 0, []
            piece.append((number, line))
            size += len(line)
    if piece:
        yield start, piece


def _rows(options: ScoreOptions, part: Part) -> Iterator[Row]:
    """The rows of a part that can be scored. Raises UserError where the input is no longer what it was."""
    with options.input.open("rb") as handle:
        handle.seek(part.start)
        data = handle.read(part.size)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise UserError(f"{options.input}: changed while it was scored", fix="start again: what did not change is kept")
    for line in data.split(b"\n"):
        try:
            row = _row(line, options.kind)
        except ValueError:
            continue  # set aside
        if row is not None:
            yield row


def _row(line: bytes, kind: str) -> Row | None:
    """None for a blank line. Raises ValueError, which says what is wrong with it, where it cannot be scored."""
    text = line.decode("utf-8-sig")
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    needed = "text" if kind == "irm" else "question"
    if not isinstance(row, dict) or not isinstance(row.get(needed), str):
        raise ValueError(f"needs {needed} as text")
    if kind != "irm":
        steps = row["steps"] if "steps" in row else [row.get("text")]
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise ValueError("needs steps as a list of texts, or text")
    _line(row)  # half of a surrogate pair is no text
    return row


# --------------------------------------------------------------------------------------------- scores


def _scored(rows: list[Row], options: ScoreOptions, model: InstructionRewardModel | ProcessRewardModel) -> tuple[bytes, dict[str, int]]:
    """Lines of the output, and how many rows were too long to be read whole, or had a key that a score now takes."""
    if isinstance(model, InstructionRewardModel):
        texts = [row["text"] for row in rows]
        values = model.score(texts, options.batch_size)
        found = [{"score": value, "truncated": model.truncates(text)} for text, value in zip(texts, values, strict=True)]
    else:
        results = model.score([row["question"] for row in rows], [_steps(row, options) for row in rows], options.batch_size)
        # As the server answers: what was not read has no score, where 0 would be taken for a bad one.
        found = [
            {"step_scores": list(one.scores), "score": None if one.truncated else aggregate(one.scores), "truncated": one.truncated}
            for one in results
        ]
    truncated = sum(one["truncated"] for one in found)
    replaced = sum(bool(row.keys() & one.keys()) for row, one in zip(rows, found, strict=True))
    return b"".join(_line(row | one) for row, one in zip(rows, found, strict=True)), {"truncated": truncated, "replaced": replaced}


def _steps(row: Row, options: ScoreOptions) -> list[str]:
    if "steps" in row:
        return row["steps"]
    steps = split_steps(row["text"], options.delimiter)
    return [step.text for step in (steps if options.answer_marker is None else until_answer(steps, options.answer_marker))]


def _made_by(options: ScoreOptions, model: InstructionRewardModel | ProcessRewardModel) -> str:
    """All that scores of given rows depend on."""
    config: Any = model.model.config
    weights = digest(options.model) if Path(options.model).is_dir() else f"{options.model}@{config._commit_hash}"
    form = getattr(model, "form", None)
    settings = (options.kind, options.delimiter, options.answer_marker, options.batch_size, form and form.model_dump_json())
    return _digest(__version__, weights, pick_device(options.device).partition(":")[0], *map(repr, settings))


# ---------------------------------------------------------------------------------------------- files


def _write_part(file: Path, rows: bytes, counts: dict[str, int]) -> None:
    body = json.dumps(counts).encode() + b"\n" + rows
    _write(file, [hashlib.sha256(body).hexdigest().encode() + b"\n", body])


def _read_part(file: Path) -> tuple[bytes, dict[str, int]] | None:
    """Lines and counts of a part; None where there is none, or no longer as it was written."""
    if not file.is_file():
        return None
    told, _, body = file.read_bytes().partition(b"\n")
    if told.decode("utf-8", "replace") != hashlib.sha256(body).hexdigest():
        return None
    counts, _, rows = body.partition(b"\n")
    return rows, json.loads(counts)


def _joined(files: Iterable[Path], counts: Counter[str]) -> Iterator[bytes]:
    for file in files:
        part = _read_part(file)
        if part is None:
            raise UserError(f"{file}: is gone or damaged", fix="start again: the other parts are kept; ranks need a folder that all share")
        counts.update(part[1])
        yield part[0]


def _write(file: Path, pieces: Iterable[bytes]) -> None:
    """The file is whole or absent, even after a power cut."""
    with _partial(file).open("wb") as handle:
        handle.writelines(pieces)
        handle.flush()
        os.fsync(handle.fileno())
    _partial(file).replace(file)


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _partial(file: Path) -> Path:
    return _beside(file, ".partial")


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
