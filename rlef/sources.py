"""Problems from JSONL files and `datasets`: GSM8K, question/answer, problem/solution, instruction/output and seed-task rows.

A row that cannot be read is counted with its line number and set aside, never dropped in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from reward_models.nearest import meant_path
from rlef.answers import as_number, canonical, extract_answer
from rlef.errors import UserError
from rlef.records import BadRow, Domain, Problem, problem_id

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def read_problems(
    path: str | Path, *, limit: int | None = None, skip_broken: bool = False, domain: Domain | None = None
) -> tuple[list[Problem], list[BadRow]]:
    """Problems of a JSONL file, at most `limit`, and the rows that hold none. `domain`: of all rows. Raises UserError for a missing file,
    one without a good row and, unless `skip_broken`, at the first line that is not a JSON object: a file cut in the middle should not pass
    for a short one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file{meant_path(path)}", fix="check the path in the config or on the command line")
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        return _collect(_parsed(handle), str(path), limit, skip_broken=skip_broken, domain=domain)


def with_answers(problems: list[Problem], source: str) -> list[Problem]:
    """Those that can be graded. Raises UserError where none can."""
    graded = [problem for problem in problems if problem.answer is not None]
    if not graded:
        raise UserError(f"{source}: no held-out problem has an answer", fix="give problems with answers")
    return graded


def load_problems(
    name: str, *, subset: str | None, split: str, limit: int | None = None, domain: Domain | None = None
) -> tuple[list[Problem], list[BadRow]]:
    """Problems of a `datasets` data set: a hub id or a local folder."""
    rows = dataset_rows(name, subset=subset, split=split)
    return _collect(enumerate(rows, 1), f"{name}/{split}", limit, domain=domain)


def dataset_rows(name: str, *, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a `datasets` data set one by one: a hub id or a local folder. Raises UserError where it cannot be loaded."""
    from datasets import load_dataset, load_from_disk

    try:
        if Path(name, "dataset_dict.json").is_file() or Path(name, "state.json").is_file():
            data: Any = load_from_disk(name)
            rows = data[split] if isinstance(data, dict) else data
        else:
            rows = load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises a dozen kinds, each with its own words
        raise UserError(
            f"data set {name} (split {split}): {type(error).__name__}: {error}",
            fix="check the id, subset and split, or give a local folder",
        ) from None
    return map(dict, rows)


def _parsed(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                yield number, row if isinstance(row, dict) else "not a JSON object"
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no JSONDecodeError
                yield number, f"not JSON: {error}"


def _collect(
    rows: Iterable[tuple[int, dict[str, Any] | str]],
    source: str,
    limit: int | None,
    *,
    skip_broken: bool = True,
    domain: Domain | None = None,
) -> tuple[list[Problem], list[BadRow]]:
    problems: dict[str, Problem] = {}
    bad: list[BadRow] = []
    for number, row in rows:
        if limit is not None and len(problems) >= limit:
            break
        if isinstance(row, str) and not skip_broken:
            raise UserError(
                f"{source}, line {number}: {row}", fix="mend or remove it; for problems.path there is also problems.skip_broken_lines: true"
            )
        try:
            if isinstance(row, str):
                raise ValueError(row)
            problem = as_problem(row, source, domain)
            if problem.id in problems:
                raise ValueError("repeats the question of an earlier row")
            problems[problem.id] = problem
        except ValueError as error:
            bad.append(BadRow(line=number, error=str(error)))
    if not problems:
        reason = f"line {bad[0].line}: {bad[0].error}" if bad else "the file is empty"
        raise UserError(f"{source}: no usable problem ({reason})", fix='give rows such as {"question": ..., "answer": ...}')
    return list(problems.values()), bad


def as_problem(row: dict[str, Any], source: str, domain: Domain | None = None) -> Problem:
    """One row as a Problem of `domain`, else the row's own, else math with an answer and general without. What is written stays whole where
    it is no math: code lives by its blank lines and indentation. Raises ValueError that says what is missing."""
    if isinstance(row.get("instances"), list) and row["instances"] and isinstance(row["instances"][0], dict):  # self-instruct seed tasks
        row = row | row["instances"][0]
    question = next(
        (row[key] for key in ("question", "problem", "instruction", "prompt") if isinstance(row.get(key), str) and row[key].strip()), None
    )
    if question is None:
        raise ValueError("no question, problem, instruction or prompt")
    if isinstance(row.get("input"), str) and row["input"].strip():
        question = f"{question}\n{row['input']}"
    written = next((row[key] for key in ("solution", "answer", "output", "response") if isinstance(row.get(key), str)), None)
    listed = row.get("solution")  # as in our own files
    given = row.get("answer")
    number = isinstance(given, int | float) and not isinstance(given, bool)
    answer = given if number or (isinstance(given, str) and "solution" in row) else None
    steps: tuple[str, ...] | None = None
    if written is not None:
        body, marker, tail = written.rpartition("####")
        steps = tuple(line for line in (_ANNOTATION.sub("", line).strip() for line in (body if marker else written).splitlines()) if line)
        found = tail.strip() if marker else extract_answer(written)
        answer = answer if answer is not None else found
        # The bare answer, without a solution. A short reply to an instruction is prose, unless it is a number.
        if answer is None and len(written) <= 40 and ("instruction" not in row or as_number(written) is not None):
            answer, steps = written, None
    if isinstance(listed, list) and all(isinstance(step, str) for step in listed):
        steps = tuple(listed)
    named: Domain | None = domain or (row["domain"] if row.get("domain") in get_args(Domain) else None)
    math = named == "math" if named else answer is not None
    if not math:
        steps = steps if isinstance(listed, list) else (written.lstrip("\n").rstrip(),) if written is not None and written.strip() else None
    return Problem(
        id=problem_id(question),
        question=question.strip(),
        answer=canonical(str(answer)) if answer is not None else None,
        solution=steps or None,
        source=source,
        domain=named or ("math" if math else "general"),
        depth=len(steps) if steps and math and answer is not None else None,
    )
