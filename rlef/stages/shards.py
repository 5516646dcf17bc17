"""Work in shards: each is done once, by one rank, and its file is all that passes between ranks and from a stopped start to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pydantic import BaseModel

from rlef.engines import dist
from rlef.evolution.teachers import Teacher, in_process, overlapped
from rlef.records import read_jsonl, write_jsonl
from rlef.run_dir import SHARDS
from rlef.stages.context import StageContext

P = TypeVar("P")
R = TypeVar("R", bound=BaseModel)
POLL_S = 0.1


class Shards:
    """The shards of a stage, in its folder until it is done. The pipeline hands that folder to the very same stage alone.

    `batch_sizes`: of what decodes the rows. Rows decoded in other company may differ where two floats tie, so shards that were made with
    other sizes are not taken up.
    """

    def __init__(self, ctx: StageContext, *batch_sizes: int) -> None:
        self.rank, self.world = dist.announced(ctx.config.launch.device)
        self.folder = ctx.folder / SHARDS / "-".join(map(str, batch_sizes))

    @property
    def main(self) -> bool:
        """Whether this rank asks an endpoint and writes what the stage leaves."""
        return self.rank == 0

    def rows(
        self, name: str, pieces: Sequence[P], work: Callable[[P], Sequence[R]], record: type[R], advance: Callable[[int], None]
    ) -> list[R]:
        """The rows that `work` makes of all pieces, in order. This rank does its share of those without a file, then waits for the others':
        for any time, since torchrun ends it where another fails."""
        files = [self.folder / f"{name}-{number:05}.jsonl" for number in range(len(pieces))]
        done = set()
        for number in range(self.rank, len(pieces), self.world):
            if not files[number].is_file():
                done.add(number)
                advance(write_jsonl(files[number], work(pieces[number])))
        out: list[R] = []
        for number, file in enumerate(files):
            while not file.is_file():
                time.sleep(POLL_S)
            rows = read_jsonl(file, record)
            out += rows
            if number not in done:
                advance(len(rows))
        return out

    def asked(
        self,
        name: str,
        teacher: Teacher,
        groups: Sequence[Sequence[P]],
        ask: Callable[[Sequence[P]], Sequence[R]],
        record: type[R],
        advance: Callable[[int], None],
        *,
        answers: int,
    ) -> list[R]:
        """A row for each member of each group, from a teacher that gives about `answers` to a group. Only a model in this process needs
        shards: an endpoint has its journal, and a program is quick."""
        if in_process(teacher):
            return self.rows(name, groups, ask, record, advance)
        out: list[R] = []
        for rows in overlapped(teacher, (partial(ask, group) for group in groups), answers):
            out += rows
            advance(len(rows))
        return out
