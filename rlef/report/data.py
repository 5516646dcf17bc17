"""What a page reads of a run directory, finished or not: each file once, and only when a section asks for it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from rlef.load_config import read_yaml
from rlef.records import Eliminated, Problem, read_jsonl
from rlef.run_dir import FAILURE, read_json

BY_ITERATION = ("ppo", "grpo")  # kinds that sample anew in each
TRAINED = ("sft", "ppo", "dpo", "grpo", "rft")
REWARD_MODELS = ("irm", "prm", "orm")

R = TypeVar("R", bound=BaseModel)
Curve = list[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Run:
    """A run directory. Its readers raise UserError for a damaged file."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_yaml(self.folder / "config.yaml", fix="run `rlef run` once more: it writes it anew")

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each stage by name, in the order of the config."""
        return {name: stage["kind"] for name, stage in self.config["stages"].items()}

    def of_kind(self, *kinds: str) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind in kinds]

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """Of each stage; empty while it is not finished."""
        return {name: self._json(name, "manifest.json") for name in self.kinds}

    def result(self, name: str) -> dict[str, Any]:
        return self.manifests[name].get("result", {})

    def state(self, name: str) -> str:
        """done, stopped with an error, begun, or not begun."""
        if self.manifests[name]:
            return "done"
        if (self.folder / name / FAILURE).is_file():
            return "stopped with an error"
        return "begun" if (self.folder / name / "started.json").is_file() else "not begun"

    @cached_property
    def info(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json") if (self.folder / "run.json").is_file() else {}

    @cached_property
    def results(self) -> dict[str, Any]:
        """What the evaluation found of each policy."""
        found: dict[str, Any] = {}
        for name in self.of_kind("evaluate"):
            found |= self._json(name, "results.json")
        return found

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, Curve]]:
        """stage -> metric -> [(step, value)]; rows and values that make no sense are left out, as the last line of a run that was killed."""
        found: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
        file = self.folder / "metrics.jsonl"
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            try:
                row = json.loads(line)
                stage, step = str(row.pop("stage")), float(row.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
                continue
            for name, value in row.items():
                if name != "time" and isinstance(value, int | float) and math.isfinite(step) and abs(value) < 1e300:
                    found[stage][name].append((step, float(value)))
        return found

    @cached_property
    def eliminated(self) -> dict[str, list[Eliminated]]:
        """By evolve stage."""
        return {name: self.rows(f"{name}/eliminated.jsonl", Eliminated) for name in self.of_kind("evolve")}

    @cached_property
    def evolved(self) -> dict[str, list[Problem]]:
        """By evolve stage, and those of PPO's fresh rounds by PPO stage; parents stand before their children."""
        found = {name: self.rows(f"{name}/evolved.jsonl", Problem) for name in self.of_kind("evolve")}
        for name in self.of_kind("ppo"):
            files = sorted((self.folder / name / "fresh").glob("round_*/evolved.jsonl"))
            if rows := [row for file in files for row in self.rows(str(file.relative_to(self.folder)), Problem)]:
                found[name] = rows
        return found

    @cached_property
    def seeds(self) -> list[Problem]:
        return [row for name in self.of_kind("problems") for row in self.rows(f"{name}/seeds.jsonl", Problem)]

    @cached_property
    def held_out(self) -> dict[str, Problem]:
        return {row.id: row for name in self.of_kind("problems") for row in self.rows(f"{name}/held_out.jsonl", Problem)}

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """All that training may see, by id; what was eliminated too, since outside the band it may be a parent."""
        known = {row.problem.id: row.problem for rows in self.eliminated.values() for row in rows}
        known |= {problem.id: problem for problem in self.seeds}
        return known | {problem.id: problem for rows in self.evolved.values() for problem in rows}

    def rows(self, file: str, record: type[R]) -> list[R]:
        path = self.folder / file
        return list(read_jsonl(path, record)) if path.is_file() and path.stat().st_size else []

    def _json(self, name: str, file: str) -> dict[str, Any]:
        path = self.folder / name / file
        return read_json(path) if path.is_file() else {}
