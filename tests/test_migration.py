"""configs/MIGRATION.md: every key of ours that it names is one, every default that it states is the schema's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlef.commands.completion import keys
from rlef.config import STAGE_TYPES, Config

PAGE = (Path(__file__).parents[1] / "configs" / "MIGRATION.md").read_text(encoding="utf-8")
SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if name != "stages"} | STAGE_TYPES
CELL = re.compile(r"(?<!\\)\|")


def ours():
    """Each cell of the columns of rlef's keys."""
    for part in re.split(r"^## ", PAGE, flags=re.M):
        rows = [CELL.split(line)[1:-1] for line in part.splitlines() if line.startswith("| ") or line.startswith("|--")]
        if rows:
            column = next(place for place, title in enumerate(rows[0]) if title.strip().startswith("rlef"))
            assert {len(row) for row in rows} == {len(rows[0])}
            yield from (row[column].strip() for row in rows[2:])


@pytest.mark.parametrize("cell", sorted(set(ours())))
def test_every_key_of_ours_is_one(cell):
    known = {key.removesuffix("=") for key in keys()}
    known |= {key.rpartition(".")[0] for key in known if key.count(".") > 1}  # ppo.lora
    named = [name for name in re.findall(r"`([^`]+)`", cell) if "." in name]
    assert set(named) <= known
    assert named or cell == "none" or "the stages" in cell or not cell.startswith("`")
    for name, stated in re.findall(r"`([\w.]+)` \(([^)]+)\)", cell):
        section, _, key = name.partition(".")
        if "." in key or stated.startswith("nearest") or stated.startswith("<"):
            continue
        default = SECTIONS[section].model_fields[key].default
        shown = (
            {None: "null", True: "true", False: "false"}.get(default, default)
            if not isinstance(default, int | float) or isinstance(default, bool)
            else default
        )
        assert stated == shown or float(stated) == shown, name


def test_keys_in_the_prose_are_keys_too():
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    known = {key.removesuffix("=") for key in keys()}
    named = {name.split(":")[0] for name in re.findall(r"`(\w+\.[\w.]+)(?:: [^`]*)?`", prose)}
    of_sections = {name for name in named if name.split(".")[0] in SECTIONS and not name.endswith((".py", ".json", ".jsonl", ".yaml"))}
    assert of_sections and of_sections <= known
