"""One thread owns the models and scores the waiting rows of many requests together, behind a queue that has an end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol


class Model(Protocol):
    """What scores rows of one kind. Called by the one thread alone."""

    def read(self, row: Any) -> Any:
        """A row in the model's tokens."""
        ...

    def tokens(self, read: Any) -> int:
        """How many of them a forward has to carry; 0 for a row that needs none."""
        ...

    def score(self, read: Sequence[Any]) -> list[Any]:
        """One result a row, in order, in one forward."""
        ...


class NotReady(Exception):
    """The models are not loaded yet, or no longer served."""


class QueueFull(Exception):
    """So many rows wait that these would be too many."""


@dataclass(frozen=True)
class BatchLimits:
    """What is scored together, and how much may wait."""

    rows: int = 64  # of a forward
    tokens: int = 16384  # of a forward, padding included; a longer row goes alone
    wait_s: float = 0.005  # that a forward waits for more rows, from the arrival of its first
    queue_rows: int = 4096  # that wait at most


@dataclass(eq=False)
class _Job:
    """The rows of one request; `answer` is set when all of them are scored."""

    kind: str
    results: list[Any]
    left: int
    answer: Future[list[Any]] = field(default_factory=Future)

    def put(self, place: int, result: Any) -> None:
        self.results[place] = result
        self.left -= 1
        if not self.left:
            self._end(lambda: self.answer.set_result(self.results))

    def fail(self, error: Exception) -> None:
        self._end(lambda: self.answer.set_exception(error))

    def _end(self, how: Callable[[], None]) -> None:
        with contextlib.suppress(InvalidStateError):  # the client is gone, or another row failed before
            how()


@dataclass(eq=False)
class _Row:
    job: _Job
    place: int
    value: Any
    arrived: float
    read: Any = None


class Batcher:
    """`submit` from any thread. `load` gives the models by kind and runs in the scoring thread; `observe(kind, rows, tokens, seconds)`
    hears of each forward."""

    def __init__(
        self,
        load: Callable[[], Mapping[str, Model]],
        limits: BatchLimits,
        observe: Callable[[str, int, int, float], None] = lambda *_: None,
    ) -> None:
        self.limits = limits
        self.models: Mapping[str, Model] = {}  # until they are loaded
        self.failure: Exception | None = None  # of loading
        self._load, self._observe = load, observe
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Row]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """`on_failure` is called where the models cannot be loaded; `failure` then says why."""
        self._on_failure = on_failure
        self._thread.start()

    @property
    def waiting(self) -> int:
        return sum(len(rows) for rows in self._waiting.values())

    def submit(self, kind: str, values: Sequence[Any]) -> Future[list[Any]]:
        """Results in the order of `values`, some time. Raises NotReady, QueueFull; a cancelled answer's rows are not scored."""
        job = _Job(kind, [None] * len(values), len(values))
        with self._changed:
            if not self.models or self._closed:
                raise NotReady
            if self.waiting + len(values) > self.limits.queue_rows:
                raise QueueFull
            now = time.monotonic()
            self._waiting[kind].extend(_Row(job, place, value, now) for place, value in enumerate(values))
            self._changed.notify()
        if not values:
            job.answer.set_result([])
        return job.answer

    def close(self) -> None:
        """Score what waits, then end. A load that is under way is not waited for: its thread ends with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self.models:
            self._thread.join()

    def _work(self) -> None:
        try:
            models = self._load()
        except Exception as error:
            self.failure = error
            self._on_failure()
            return
        with self._changed:
            self._waiting = {kind: deque() for kind in models}
            self.models = models
        while (queue := self._ready()) is not None:
            if rows := self._take(queue):
                self._score(rows)

    def _ready(self) -> deque[_Row] | None:
        """The queue whose first row has waited longest, once it fills a forward or has waited long enough; None at the end."""
        with self._changed:
            while not (queues := [queue for queue in self._waiting.values() if queue]):
                if self._closed:
                    return None
                self._changed.wait()
            queue = min(queues, key=lambda rows: rows[0].arrived)
            until = queue[0].arrived + self.limits.wait_s
            while len(queue) < self.limits.rows and not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return queue

    def _take(self, queue: deque[_Row]) -> list[_Row]:
        """The first rows that fit into one forward. Only this thread takes, so what does not fit can go back to the front."""
        with self._changed:
            rows = [queue.popleft() for _ in range(min(len(queue), self.limits.rows))]
        taken: list[_Row] = []
        width = 0
        for place, row in enumerate(rows):
            if row.job.answer.done():
                continue
            try:
                model = self.models[row.job.kind]
                row.read = row.read if row.read is not None else model.read(row.value)
                wider = max(width, model.tokens(row.read))
            except Exception as error:
                row.job.fail(error)
                continue
            if taken and wider * (len(taken) + 1) > self.limits.tokens:
                with self._changed:
                    queue.extendleft(reversed(rows[place:]))
                break
            taken.append(row)
            width = wider
        return taken

    def _score(self, rows: Sequence[_Row]) -> None:
        kind = rows[0].job.kind
        model, began = self.models[kind], time.monotonic()
        try:
            scored = list(zip(rows, model.score([row.read for row in rows]), strict=True))
        except Exception as error:
            if len(rows) == 1:
                rows[0].job.fail(error)
            else:
                for row in rows:  # one row's fault is not the others'
                    self._score([row])
            return
        self._observe(kind, len(rows), sum(model.tokens(row.read) for row in rows), time.monotonic() - began)
        for row, result in scored:
            row.job.put(row.place, result)
