"""What a stage is handed: its settings, its inputs' folders, its own folder, a tracker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlef.config import Config
    from rlef.tracking import Tracker


@dataclass(frozen=True)
class StageContext:
    """A stage is `run(ctx) -> dict` (its part of summary.json). It reads `inputs`, writes into `folder`, and nothing else: an endpoint's
    answers alone stand in the run's `journal`."""

    name: str
    config: Config
    settings: Any  # the stage's own section, e.g. PpoStage
    inputs: dict[str, Path]  # input name (e.g. "init", "prompts", "irm") -> finished stage's folder, or an outside folder
    folder: Path  # its own folder; half-written until the pipeline writes manifest.json last
    tracker: Tracker
    journal: Path | None = None  # the run's journal of an endpoint's calls; None: kept in memory

    @property
    def operations_file(self) -> str | None:
        """What a chat teacher is asked beside the package's operations: what a method stage found, else the file that the config names."""
        found = self.inputs.get("method") or self.inputs.get("templates")
        return str(found / "operations.yaml") if found is not None else self.config.operations_file(self.name)

    @property
    def seed(self) -> int:
        return self.config.seed_of(self.settings)
