"""A user's own Python function in a reward model's place: `prm: rewards.py:grade` or `irm: rewards.py:rate`.

    def grade(question: str, steps: list[str], answer: str | None, gold: str | None) -> float | list[float] | None
    def rate(question: str) -> float | None

`grade` gives one score of the whole answer, as an outcome model does, or a list of one a step; `rate` gives r_I; all in 0..1. None: it
cannot judge, and the sample is masked. `gold` is the known answer where the stage has `use_answers`, else None. The file is run in this
process, for the user named it; it is known by its contents, not by those of files that it imports.
"""

from __future__ import annotations

import ast
import functools
import math
import numbers
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.nearest import meant
from reward_models.records import file_digest
from rlef.errors import UserError

if TYPE_CHECKING:
    from reward_models.process import StepScores

PARAMETERS = {"prm": ("question", "steps", "answer", "gold"), "irm": ("question",)}
SHOWN = 300  # characters of a question or a value in a message


def check_function(key: str, file: str, name: str) -> None:
    """Raises UserError where `file` has no function `name` that can stand for the `key` ("prm" or "irm"). It is read, not run."""
    wanted = f"def {name}({', '.join(PARAMETERS[key])})"
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid Python ({error.msg})", fix="mend that line") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})", fix="paths are taken from the folder you start in") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise UserError(f"{file}: has no function {name}{meant(name, functions)}", fix=f"write `{wanted}: ...` in it, not indented")
    taken = functions[name].args
    most = len(taken.posonlyargs) + len(taken.args)
    least = most - len(taken.defaults)
    count = len(PARAMETERS[key])
    if least > count or (most < count and taken.vararg is None) or None in taken.kw_defaults:
        raise UserError(f"{file}, line {functions[name].lineno}: {name} takes other parameters", fix=f"write `{wanted}: ...`")


class GradeFunction:
    """Stands where a process reward model could."""

    def __init__(self, file: str, name: str) -> None:
        self._function = _Function(file, name)

    def grade(self, question: str, steps: Sequence[str], answer: str | None, gold: str | None) -> StepScores | None:
        """One score a step or one in all, in 0..1; None where the function cannot judge. It is not asked of a solution without steps."""
        from reward_models.process import StepScores  # torch stands behind it

        if not steps:
            return StepScores(())
        given = self._function(question, list(steps), answer, gold)
        if given is None:
            return None
        scores = list(given) if isinstance(given, list | tuple) else [given]
        if isinstance(given, list | tuple) and len(scores) != len(steps):
            raise self._function.mistake(f"gave {len(scores)} scores for {len(steps)} steps", given, question)
        return StepScores(tuple(self._function.in_range(score, given, question) for score in scores))


class RateFunction:
    """Stands where an instruction reward model could."""

    def __init__(self, file: str, name: str) -> None:
        self._function = _Function(file, name)

    def score(self, instructions: Sequence[str]) -> list[float | None]:
        """r_I of each instruction in 0..1; None where the function cannot judge."""
        given = [self._function(instruction) for instruction in instructions]
        return [
            None if rate is None else self._function.in_range(rate, rate, instruction)
            for rate, instruction in zip(given, instructions, strict=True)
        ]


class _Function:
    """The function itself, and the messages that name it."""

    def __init__(self, file: str, name: str) -> None:
        self._file, self._place = file, f"{file}:{name}"
        self._called = _names(file, file_digest(Path(file)))[name]

    def __call__(self, question: str, *rest: Any) -> Any:
        try:
            return self._called(question, *rest)
        except Exception as error:
            where = f"{self._place}{_line(error, self._file)}"
            raise UserError(f"{where}: {type(error).__name__}: {error} (question: {question!r:.{SHOWN}})", fix="mend it") from error

    def in_range(self, score: Any, given: Any, question: str) -> float:
        number = float(score) if isinstance(score, numbers.Real) else math.nan
        if 0 <= number <= 1:
            return number
        raise self.mistake("gave something else than scores in 0..1", given, question)

    def mistake(self, what: str, given: Any, question: str) -> UserError:
        return UserError(
            f"{self._place} {what}: {given!r:.{SHOWN}} (question: {question!r:.{SHOWN}})",
            fix="return a number in 0..1, of an answer also a list of one a step, or None where it cannot judge",
        )


@functools.cache
def _names(file: str, digest: str) -> dict[str, Any]:
    """What the file defines; run once for both keys, and again when it has changed."""
    try:
        return runpy.run_path(file)
    except Exception as error:
        raise UserError(f"{file}{_line(error, file)}: {type(error).__name__}: {error}", fix="mend the file") from error


def _line(error: Exception, file: str) -> str:
    """Where in the user's file it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", line {lines[-1]}" if lines else ""
