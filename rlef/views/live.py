"""What a run directory shows of a run, wherever it was started: its stages, how far the one at work is, who works, curves, last answers.

Only files are read, and any of them may be missing, half-written or damaged: what cannot be read is not shown.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from rlef.errors import UserError
from rlef.holder import Holder
from rlef.load_config import config_of
from rlef.records import Rollout, read_jsonl
from rlef.run_dir import ERROR, FAILURE, METRICS, RunDir

PROGRESS = "progress.json"
EVERY_S = 1.0  # between two writes of it
SILENT_S = 300.0  # without a sign of life, after which a run on another machine is called silent
TAIL_BYTES = 4 * 2**20  # of metrics.jsonl that are read: what a screen can show is at its end
# Curves by their names, the first of them first; of more than these a screen has no room.
CURVES = (
    "reward/total", "reward/answer", "monitor/exact_match", r"\w+/kl", r"\w+/entropy", "rollout/length",
    r"\w+/loss", r"\w+/eval_loss", r"\w+/rewards_accuracies", r"\w+/mean_token_accuracy", r"\w+/grad_norm", r"evolve/\w+", r"method/\w+",
)  # fmt: skip
MOST_CURVES = 6

State = Literal["done", "works", "stopped", "failed", "to run"]


@dataclass(frozen=True)
class Progress:
    """How far a stage is, in units of its own; times in seconds of the wall clock."""

    stage: str
    what: str
    done: float
    total: float
    before: float  # of `done`, what an earlier start did
    began: float
    time: float  # of this figure

    def left(self, now: float) -> float | None:
        """Seconds to go at the pace so far; None before the first unit."""
        made = self.done - self.before
        return max(0.0, (self.time - self.began) / made * (self.total - self.done) - (now - self.time)) if made > 0 else None


@dataclass(frozen=True)
class StageLook:
    """A stage as its folder shows it."""

    name: str
    kind: str
    state: State
    seconds: float | None = None  # that it took, or has had so far
    said: str = ""  # its figures, or why it failed


@dataclass(frozen=True)
class Look:
    """A run at one moment."""

    name: str
    stages: tuple[StageLook, ...]
    progress: Progress | None
    holder: Holder | None
    lives: bool | None  # the holder; None: it cannot be known from here
    silent_s: float | None  # since the last sign of life
    curves_of: str
    curves: dict[str, list[tuple[float, float]]]  # name -> (step, value)
    answers_of: str
    answers: tuple[Rollout, ...]
    step_delimiter: str
    answer_marker: str

    @property
    def done(self) -> bool:
        return all(stage.state == "done" for stage in self.stages)


_PROGRESS = TypeAdapter(Progress)


@contextlib.contextmanager
def told(metrics: Path | None, stage: str, what: str, total: float, done: float) -> Iterator[Callable[[float], None]]:
    """Keep PROGRESS beside `metrics`, written at most once a second, until the end; yields advance(n). A full disk does not matter."""
    if metrics is None:
        yield lambda n: None
        return
    file, began = metrics.with_name(PROGRESS), time.time()
    state, written = {"done": done}, {"at": -EVERY_S}

    def advance(n: float) -> None:
        state["done"] += n
        if time.monotonic() - written["at"] < EVERY_S:
            return
        written["at"] = time.monotonic()
        figures = Progress(stage, what, state["done"], total, done, began, time.time())
        with contextlib.suppress(OSError):
            partial = file.with_name(file.name + ".partial")
            partial.write_text(json.dumps(asdict(figures)), encoding="utf-8")
            partial.replace(file)

    advance(0)
    try:
        yield advance
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def at_work(run: RunDir, stages: Iterable[str]) -> str | None:
    """The stage that a living process of this machine works on; None where there is none."""
    holder, latest = Holder.read(run.lock_file), _latest(run, stages)
    unfinished = latest is not None and run.manifest(latest) is None
    return latest if unfinished and holder is not None and holder.lives() else None


def _latest(run: RunDir, stages: Iterable[str]) -> str | None:
    """The stage that was begun last; None where none was."""
    begun = {name: at for name in stages if (at := _changed(run.stage(name) / "started.json")) is not None}
    return max(begun, key=lambda name: begun[name], default=None)


def look(root: Path, now: float) -> Look:
    """Raises UserError where `root` is no run directory."""
    config = config_of(root)
    stages = {name: stage.kind for name, stage in config.stages.items()}
    run = RunDir(root)
    holder = Holder.read(run.lock_file)
    lives = holder.lives() if holder is not None else None
    progress = _progress(root / PROGRESS)
    signs = [time_ for file in (root / METRICS, root / PROGRESS, run.lock_file) if (time_ := _changed(file)) is not None]
    silent_s = max(0.0, now - max(signs)) if signs else None
    latest = _latest(run, stages)
    looks = [_stage(run, name, kind, now, works=lives is not False and name == latest) for name, kind in stages.items()]
    working = next((one.name for one in looks if one.state == "works"), None)
    answers_of, answers = _answers(root, list(stages))
    curves_of, curves = _curves(root / METRICS, list(stages), working or answers_of)
    shown = progress if progress is not None and progress.stage == working else None
    return Look(
        name=root.resolve().name,
        stages=tuple(looks),
        progress=shown,
        holder=holder,
        lives=lives,
        silent_s=silent_s,
        curves_of=curves_of,
        curves=curves,
        answers_of=answers_of,
        answers=answers,
        step_delimiter=config.model.step_delimiter,
        answer_marker=config.model.answer_marker,
    )


def _stage(run: RunDir, name: str, kind: str, now: float, *, works: bool) -> StageLook:
    folder = run.stage(name)
    try:
        manifest = run.manifest(name)
    except (UserError, OSError) as error:
        return StageLook(name, kind, "failed", said=str(error).splitlines()[0])
    if manifest is not None:
        return StageLook(name, kind, "done", manifest.seconds, _figures(kind, manifest.result))
    started = _changed(folder / "started.json")
    if started is None:
        return StageLook(name, kind, "to run")
    if said := _failure(folder, since=started):
        return StageLook(name, kind, "failed", said=said)
    return StageLook(name, kind, "works", max(0.0, now - started)) if works else StageLook(name, kind, "stopped")


def _failure(folder: Path, since: float) -> str:
    """Why its last start failed: the user's mistake that a worker found, or the last line of a rank's traceback."""
    for file, line in ((folder / ERROR, 0), (folder / FAILURE, -1)):
        with contextlib.suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
            if file.stat().st_mtime >= since:
                text = file.read_text(encoding="utf-8")
                return str(json.loads(text)["traceback"] if file.name == FAILURE else text).splitlines()[line]
    return ""


KEYS: dict[str, tuple[str, ...]] = {
    "irm": ("pair_accuracy", "ece"), "prm": ("step_auroc", "within_problem"), "orm": ("step_auroc", "within_problem"),
    "sft": ("steps", "loss", "eval_loss"), "dpo": ("pairs", "loss", "reward_accuracy"),
}  # fmt: skip


def _figures(kind: str, result: dict[str, Any]) -> str:
    """A stage's result in a few words: of an evaluation how much is right, else its first numbers or those of KEYS."""
    if kind == "evaluate":
        shares = {policy: row["pass@1"] for policy, row in result.items() if isinstance(row, dict) and "pass@1" in row}
        return ", ".join(f"{policy} {share:.1%}" for policy, share in shares.items())
    numbers = {name: value for name, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    chosen = [name for name in KEYS.get(kind, ()) if name in numbers] or list(numbers)[:3]
    return ", ".join(f"{name} {numbers[name]:.3g}" if isinstance(numbers[name], float) else f"{name} {numbers[name]}" for name in chosen)


def _curves(file: Path, stages: list[str], wanted: str) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Of the stage `wanted`, or the last that logged anything: its name, and the points of its first CURVES."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in _tail(file):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            row = json.loads(line)
            stage, step = str(row.pop("stage")), float(row.pop("step"))
            for name, value in row.items():
                if name != "time" and isinstance(value, int | float):
                    found[stage][str(name)].append((step, float(value)))
    logged = [name for name in stages if name in found]
    stage = wanted if wanted in logged else logged[-1] if logged else ""
    names = sorted(((place, name) for name in found[stage] if (place := _place(name)) is not None), key=lambda one: one[0])
    return stage, {name: found[stage][name] for _, name in names[:MOST_CURVES]}


def _place(name: str) -> int | None:
    return next((place for place, pattern in enumerate(CURVES) if re.fullmatch(pattern, name)), None)


def _answers(root: Path, stages: list[str], most: int = 3) -> tuple[str, tuple[Rollout, ...]]:
    """The first samples of the newest file of rollouts, one a question."""
    files = [(changed, name) for name in stages if (changed := _changed(root / name / "rollouts.jsonl")) is not None]
    for _, name in sorted(files, reverse=True):
        with contextlib.suppress(UserError, OSError):
            rows = read_jsonl(root / name / "rollouts.jsonl", Rollout, strict=False)
            return name, tuple({row.problem_id: row for row in reversed(rows)}.values())[::-1][:most]
    return "", ()


def _tail(file: Path) -> list[str]:
    """The last lines of a file, the first of them perhaps cut."""
    with contextlib.suppress(OSError), file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return handle.read().decode("utf-8", errors="replace").splitlines()
    return []


def _progress(file: Path) -> Progress | None:
    with contextlib.suppress(OSError, ValidationError):
        return _PROGRESS.validate_json(file.read_bytes())
    return None


def _changed(file: Path) -> float | None:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return None
