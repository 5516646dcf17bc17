"""Two runs beside each other: paired differences over the same held-out problems, and what else differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.pages import Table
from reward_models.statistics import in_points, paired_difference
from rlef.errors import UserError
from rlef.load_config import read_yaml
from rlef.records import Outcome, read_jsonl
from rlef.run_dir import RunDir, read_json

OWN = ("run.dir",)  # keys that every run has its own of


@dataclass(frozen=True)
class Measured:
    """What a comparison needs of a run, finished or not."""

    name: str
    config: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]  # of each finished stage
    cost: dict[str, float]  # USD of each finished stage that paid a teacher whose prices are known
    outcomes: dict[str, list[Outcome]]  # by policy, in the order of the evaluation


@dataclass(frozen=True)
class Difference:
    """One policy in two runs, over the problems that both evaluated; shares of right greedy answers."""

    policy: str
    problems: int
    first: float
    second: float
    gain: dict[str, Any]  # second minus first: mean, ci95
    alone: int  # problems that one run evaluated and the other did not


def measured(folder: Path) -> Measured:
    """Raises UserError where the folder holds no run, or one with a damaged file."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no config.yaml there", fix="give a run directory, e.g. runs/quickstart")
    config = read_yaml(folder / "config.yaml", fix="run `rlef run` once more: it writes it anew")
    stages = config.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError(f"{folder}/config.yaml: no stages there", fix="run `rlef run` once more: it writes it anew")
    run, seconds, cost, outcomes = RunDir(folder), {}, {}, {}
    for name, stage in stages.items():
        manifest = run.manifest(name)
        if manifest is None:
            continue
        seconds[name] = manifest.seconds
        if (paid := paid_usd(manifest.result)) is not None:
            cost[name] = paid
        if stage.get("kind") == "evaluate":
            outcomes |= read_outcomes(folder / name)
    info = run.info()
    versions = {**info.get("versions", {}), **{key: str(info[key]) for key in ("python", "git", "cpus") if info.get(key) is not None}}
    return Measured(folder.resolve().name, config, versions, seconds, cost, outcomes)


def read_outcomes(folder: Path) -> dict[str, list[Outcome]]:
    """Of each policy that an evaluate stage finished, in its order."""
    results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    files = {file.name: file for file in folder.glob("samples_*.jsonl")}
    named = {policy: files.get(f"samples_{policy.replace('/', '_')}.jsonl") for policy in results}
    return {policy: list(read_jsonl(file, Outcome)) for policy, file in named.items() if file is not None}


def paid_usd(result: Mapping[str, Any]) -> float | None:
    """What a stage's calls cost; None without a paid teacher, or where its prices are not known."""
    teacher = result.get("teacher")
    return teacher.get("cost_usd") if isinstance(teacher, dict) else None


def policy_differences(first: Mapping[str, Sequence[Outcome]], second: Mapping[str, Sequence[Outcome]]) -> list[Difference]:
    """Of each policy that both have and evaluated on at least one same problem; second minus first."""
    found = []
    for policy in first:
        right = [{row.problem_id: row.right for row in side.get(policy, ())} for side in (first, second)]
        shared = [problem for problem in right[0] if problem in right[1]]
        if not shared:
            continue
        before, after = ([side[problem] for problem in shared] for side in right)
        gain = paired_difference(after, before)
        alone = len(right[0].keys() ^ right[1].keys())
        found.append(Difference(policy, len(shared), sum(before) / len(shared), sum(after) / len(shared), gain, alone))
    return found


def verdict(interval: Sequence[float]) -> str:
    """Of a difference by its 95 % interval."""
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "not clear"


def setting_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(dotted key, value, value) of every setting that differs; "–" and last where a run lacks it, e.g. for a stage that it has not."""
    left, right = _flat(first), _flat(second)
    differ = [key for key in {**left, **right} if left.get(key) != right.get(key) and key not in OWN]
    differ.sort(key=lambda key: not (key in left and key in right))
    return [(key, left.get(key, "–"), right.get(key, "–")) for key in differ]


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """`stages.ppo.iterations` is told as the user sets it, `ppo.iterations`."""
    found: dict[str, str] = {}
    for key, one in value.items():
        name = f"{above}{key}"
        if isinstance(one, Mapping) and one:
            found |= _flat(one, "" if name == "stages" else f"{name}.")
        else:
            found[name] = str(one)
    return found


def tables(first: Measured, second: Measured) -> list[Table]:
    """All that differs, for the terminal and for the page; a part without rows is left out."""
    names = (f"1: {first.name}", f"2: {second.name}")
    results = [
        [
            one.policy,
            str(one.problems),
            f"{one.first:.1%}",
            f"{one.second:.1%}",
            _points(one.gain),
            verdict(one.gain["ci95"]),
            str(one.alone),
        ]
        for one in policy_differences(first.outcomes, second.outcomes)
    ]
    spent = [
        [stage, *(_seconds(side.seconds.get(stage)) for side in (first, second)), *(_usd(side.cost.get(stage)) for side in (first, second))]
        for stage in {**first.seconds, **second.seconds}
    ]
    totals = [_seconds(sum(side.seconds.values())) for side in (first, second)]
    paid = [_usd(sum(side.cost.values()) if side.cost else None) for side in (first, second)]
    found: list[Table] = [
        ("right answers, 2 minus 1 in points", ["policy", "shared problems", *names, "difference (95 %)", "2 is", "not shared"], results),
        ("settings that differ", ["key", *names], [list(row) for row in setting_differences(first.config, second.config)]),
        ("versions that differ", ["of", *names], [list(row) for row in setting_differences(first.versions, second.versions)]),
        ("time and cost", ["stage", "1: seconds", "2: seconds", "1: USD", "2: USD"], [*spent, ["all", *totals, *paid]] if spent else []),
    ]
    return [table for table in found if table[2]]


def _points(gain: Mapping[str, Any]) -> str:
    mean, low, high = in_points(gain)
    return f"{mean} ({low} to {high})"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _usd(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
