"""configs/README.md has every key of the schema, as the schema has it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from rlef.config import STAGE_TYPES, Config, Stage
from rlef.load_config import parse_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if name != "stages"} | STAGE_TYPES


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("config_reference", ROOT / "scripts" / "config_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys_on_page(section):
    return set(re.findall(r"^\| `([\w.]+)` \|", PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0], re.M))


def test_it_is_as_the_script_writes_it(reference):
    assert reference.page() == PAGE, "run: python scripts/config_reference.py"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_stands_in_it(name):
    known = set(SECTIONS[name].model_fields) - {"hosts"}
    if name in STAGE_TYPES:
        known = known - set(Stage.model_fields) - {"kind"}
        assert set(Stage.model_fields) == keys_on_page("Every stage")
    assert {key for key in keys_on_page(f"`{name}`") if "." not in key} == known


def test_every_key_says_what_it_is(reference):
    for name, section in SECTIONS.items():
        schema = section.model_json_schema()
        bare = [key for key, row, _ in reference.rows(section, schema, schema, "") if not row["description"] and key != "kind"]
        assert bare == [], name


@pytest.mark.parametrize(
    "section,key,cells",
    [
        ("run", "seed", ["whole number >= 0", "`0`"]),
        ("ppo", "gamma", ["number > 0, <= 1", "`1`"]),
        ("ppo", "policy_lr", ["number > 0", "`0.00005`"]),
        ("ppo", "rollout.sync", ["`reload`, `nccl`", "`reload`"]),
        ("ppo", "prm", ["source", "`null`"]),
        ("label", "temperatures", ["list of number > 0", "`[]`"]),
        ("label", "held_out_fraction", ["number > 0, < 1", "`0.15`"]),
        ("teacher", "flaw_rate", ["number from 0 to 1", "`0.25`"]),
        ("teacher", "prices.prompt", ["number >= 0", "required"]),
        ("prm", "separator", ["text", "`<\\|step\\|>`"]),
        ("evaluate", "servers", ["mapping: name -> text", "`{}`"]),
    ],
)
def test_what_a_row_says(section, key, cells):
    text = PAGE.split(f"\n## `{section}`\n")[1].split("\n## ")[0]
    row = next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
    assert row.removeprefix(f"| `{key}` | ").startswith(" | ".join(cells) + " | ")


def test_its_tables_are_whole_and_its_config_is_right():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    config = parse_config(_with_kinds(yaml.safe_load(example)), "configs/README.md")
    assert list(config.stages) == ["problems", "sft", "longer"]


def _with_kinds(data):
    return data | {"stages": {name: {"kind": name} | settings for name, settings in data["stages"].items()}}
