"""The nearest known word or path, for the message over one that is not known."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known word most like the given one; None where none is."""
    import difflib  # needed at a mistake alone

    return next(iter(difflib.get_close_matches(given, list(known), n=1)), None)


def meant(given: str, known: Iterable[str]) -> str:
    """`; did you mean NEAREST?`, or nothing where no word is near."""
    near = nearest(given, known)
    return "" if near is None else f"; did you mean `{near}`?"


def meant_path(given: str | Path) -> str:
    """The same for a path that holds not what it should: where its first part that is missing has a neighbour of a like name that leads
    on, or where it is a stage's folder, whose model lies in model/."""
    path = Path(given)
    with contextlib.suppress(OSError):
        if path.exists():
            return f"; did you mean `{path / 'model'}`?" if (path / "model").is_dir() else ""
        there = next(folder for folder in path.parents if folder.is_dir())
        missing, *rest = path.relative_to(there).parts
        near = nearest(missing, (name for name in os.listdir(there) if (there / name).joinpath(*rest).exists()))
        return "" if near is None else f"; did you mean `{(there / near).joinpath(*rest)}`?"
    return ""
