"""TensorBoard: event files below the run directory, a folder a stage (`tensorboard --logdir RUN/tensorboard`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlef.errors import UserError
from rlef.trackers.base import Artifact, Start, plain_rows

FOLDER = "tensorboard"


def start(one: Start) -> TensorBoard:
    """A stage that goes on begins its folder anew, with the rows that it has."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tracking.backends: tensorboard is not installed", fix="pip install 'rlef[tensorboard]'") from None
    folder = one.root / FOLDER / one.stage
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder), flush_secs=10)
    writer.add_text("parameters", _code(one.parameters))
    return TensorBoard(writer)


class TensorBoard:
    """One stage's event file. Tables are Markdown, a line is its table."""

    have = 0

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *plain_rows(rows)]
        self.writer.add_text(name, "\n".join("|" + "|".join(_cell(value) for value in line) + "|" for line in lines), step)

    def plot(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[float]], step: int) -> None:
        self.table(name, columns, rows, step)

    def alert(self, title: str, text: str, step: int) -> None:
        self.writer.add_text(f"alert/{title}", text, step)

    def artifact(self, artifact: Artifact) -> None:
        """It keeps none: what the stage left is told of."""
        self.writer.add_text("artifact", _code({"name": artifact.name, "type": artifact.type, **artifact.metadata}))

    def summary(self, values: Mapping[str, float]) -> None:
        self.writer.add_text("summary", _code(dict(values)))

    def finish(self, *, failed: bool) -> None:
        self.writer.close()


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(value: Any) -> str:
    """As Markdown shows it unchanged."""
    return "".join(f"    {line}\n" for line in json.dumps(value, indent=2, default=str).splitlines())
