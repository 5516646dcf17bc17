"""A trace of one iteration, to be opened in Perfetto or chrome://tracing: the operations that its time goes to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Trace:
    """Traces iteration number `iteration` into `file` (.json.gz); None: traces nothing."""

    def __init__(self, file: Path, iteration: int | None) -> None:
        self.file, self.iteration = file, iteration
        self._running: profile | None = None

    def begin(self, iteration: int) -> None:
        if iteration == self.iteration:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._running = profile(activities=activities)
            self._running.start()

    def end(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running.export_chrome_trace(str(self.file))
            self._running = None
