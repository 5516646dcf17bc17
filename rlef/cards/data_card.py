"""The card of a data stage, README.md in its folder: `datasets.load_dataset` reads its columns there, a person how the rows were made.

It follows from the config, the rows and the result alone, so that the same stage leaves the same bytes wherever and however it ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from reward_models.records import RankedList, SteppedSolution
from rlef.cards.licences import licences, nameless
from rlef.config import AnyStage, Config
from rlef.records import Contamination, Eliminated, Problem, Solution
from rlef.run_dir import CARD

KINDS = {str: "string", int: "int64", float: "float64", bool: "bool"}


@dataclass(frozen=True)
class Table:
    """A file of rows that a stage leaves."""

    file: str
    record: type[BaseModel]
    what: str
    config: str  # as load_dataset calls it
    split: str = "train"


TABLES: dict[str, tuple[Table, ...]] = {
    "problems": (
        Table("seeds.jsonl", Problem, "problems that everything starts from", "default"),
        Table("held_out.jsonl", Problem, "problems that nothing may learn from", "default", "test"),
    ),
    "evolve": (
        Table("evolved.jsonl", Problem, "evolved problems that were kept, each with its `lineage`", "evolved"),
        Table("eliminated.jsonl", Eliminated, "evolved problems that were set aside, each with the `rule` that did it", "eliminated"),
        Table("contamination.jsonl", Contamination, "evolved problems beside the held-out ones that they repeat", "contamination"),
    ),
    "respond": (
        Table("solved.jsonl", Solution, "the teacher's solutions, one a problem", "solved"),
        Table("prompts.jsonl", Problem, "evolved problems that nobody answered, to practise on", "prompts"),
        Table("rejected.jsonl", Eliminated, "problems whose answers were not used, each with the `rule`", "rejected"),
    ),
    "label": (
        Table("steps.jsonl", SteppedSolution, "solutions with a label a step, 1 right, 0 wrong, for a process reward model", "steps"),
        Table("rankings.jsonl", RankedList, "versions of an instruction, ranked, 0 the best, for an instruction reward model", "rankings"),
    ),
}
MADE = {
    "problems": "Taken from {source}.",
    "evolve": "Made by {teacher} in {rounds} rounds from the seeds, one operation a child (as in arXiv 2308.09583), then sifted by rules.",
    "respond": "Answered by {teacher}, {samples} samples a problem; kept where enough of them agree.",
    "label": "Solutions sampled from the policy, their steps judged by the method `{method}`; instructions ranked by {teacher}.",
}  # fmt: skip
UNCOUNTED = ("teacher",)  # of a result: tokens and money hang on stops and retries


def write_card(config: Config, name: str, folder: Path, result: Mapping[str, Any]) -> None:
    """Of a stage that leaves rows; of another nothing is written."""
    stage = config.stages[name]
    rows = {table: _count(folder / table.file) for table in TABLES.get(stage.kind, ())}
    if any(rows.values()):
        partial = folder / (CARD + ".partial")
        partial.write_text(data_card(config, name, rows, result), encoding="utf-8")
        partial.replace(folder / CARD)


def _count(file: Path) -> int:
    if not file.is_file():
        return 0
    with file.open("rb") as handle:
        return sum(1 for _ in handle)


def data_card(config: Config, name: str, rows: Mapping[Table, int], result: Mapping[str, Any]) -> str:
    """`rows`: how many there are of each table; of an empty one datasets would make an error."""
    stage = config.stages[name]
    filled = {table: count for table, count in rows.items() if count}
    names = list(dict.fromkeys(table.config for table in filled))
    header = {
        "pretty_name": f"{name} of an rlef run",
        "task_categories": ["text-generation"],
        "tags": ["rlef", stage.kind],
        "configs": [_config(one, [table for table in filled if table.config == one], default=one == names[0]) for one in names],
        "dataset_info": [
            {"config_name": one, "features": features(next(table.record for table in filled if table.config == one))} for one in names
        ],
    }
    files = [f"- `{table.file}`: {count:,} {table.what}" for table, count in filled.items()]
    parts = [
        f"# {name}",
        MADE[stage.kind].format_map(_words(config, stage)),
        "\n".join(files),
        *_counts(result),
        f'Read with `datasets.load_dataset(FOLDER, "{names[0]}")`.',
        "## Licences\n\n" + "\n".join(licences(config, weights=stage.kind == "label")),
    ]
    return "---\n" + yaml.safe_dump(header, sort_keys=False) + "---\n\n" + "\n\n".join(parts) + "\n"


def _config(name: str, tables: list[Table], *, default: bool) -> dict[str, Any]:
    files = [{"split": table.split, "path": table.file} for table in tables]
    return {"config_name": name, **({"default": True} if default else {}), "data_files": files}


def _words(config: Config, stage: AnyStage) -> dict[str, Any]:
    """What MADE names."""
    teacher = "a program" if config.teacher.kind == "symbolic" else str(config.teacher.model or "the policy itself")
    settings = stage.model_dump(mode="json")
    source = "a program" if settings.get("source") == "symbolic" else str(nameless(settings.get("path")))
    return settings | {"teacher": nameless(teacher), "source": source}


def _counts(result: Mapping[str, Any]) -> list[str]:
    """The stage's figures: numbers, and tables of numbers by name."""
    lines = []
    for key, value in result.items():
        if key in UNCOUNTED:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"- {key.replace('_', ' ')}: {_number(value)}")
        elif isinstance(value, dict) and value and all(isinstance(one, int | float) for one in value.values()):
            lines.append(f"- {key.replace('_', ' ')}: {', '.join(f'{one}: {_number(count)}' for one, count in value.items())}")
    return ["## Figures of the stage\n\n" + "\n".join(lines)] if lines else []


def _number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def features(record: type[BaseModel]) -> list[dict[str, Any]]:
    """The columns of a record as datasets writes them in a card: those that a file's rows all lack are there, too."""
    return [{"name": name} | _feature(field.annotation) for name, field in record.model_fields.items()]


def _feature(annotation: Any) -> dict[str, Any]:
    if get_origin(annotation) in (Union, UnionType):  # X | None
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"dtype": KINDS[type(parts[0])]}
    if origin in (tuple, list):
        inner = _feature(parts[0])
        return {"list": inner.get("dtype") or inner.get("struct") or inner}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"struct": features(annotation)}
    return {"dtype": KINDS.get(annotation, "json")}  # a mapping's keys are no columns
