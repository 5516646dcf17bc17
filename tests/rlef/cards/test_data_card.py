"""Cards of data stages: datasets loads what they describe, they hang on nothing but the rows, and no fingerprint hangs on them."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import BaseModel

from reward_models.records import RankedItem, RankedList, SteppedSolution
from rlef.cards.data_card import TABLES, features, write_card
from rlef.config import Config
from rlef.records import Eliminated, Lineage, Problem, Solution, Truth, write_jsonl
from rlef.run_dir import RunDir

CONFIG = Config.model_validate(
    {
        "model": {"random": {}},
        "teacher": {"kind": "openai", "model": "judge-1", "base_url": "http://10.0.0.2/v1"},
        "stages": {
            "problems": {"source": "jsonl", "path": "/home/me/train.jsonl", "held_out_path": "/home/me/test.jsonl", "kind": "problems"},
            "evolve": {"kind": "evolve"}, "respond": {"kind": "respond"}, "sft": {"kind": "sft"}, "label": {"kind": "label"},
        },
    }
)  # fmt: skip
TRUTH = Truth(program={"statements": [["given", 0, None, 9]], "topic": "pens"}, shape="s")
LINEAGE = Lineage(parent="a", root="a", operation="up.add_step", round=1, teacher="judge-1")
EVOLVED = Problem(id="b", question="Zwölf\u2028?", answer="12", lineage=LINEAGE, truth=TRUTH, extra={"own": [1, "x"]})
ROWS = {
    "problems": {"seeds.jsonl": [Problem(id="a", question="?")] * 3, "held_out.jsonl": [Problem(id="h", question="?", answer="1", depth=2)]},
    "evolve": {
        # The first row lacks what the second has.
        "evolved.jsonl": [Problem(id="c", question="?"), EVOLVED],
        "eliminated.jsonl": [Eliminated(problem=EVOLVED, rule="refusal")],
        "contamination.jsonl": [],
    },
    "respond": {
        "solved.jsonl": [Solution(problem_id="b", question="?", steps=("x",), answer="12", text="x", writer="judge-1", agreement=1.0)],
        "prompts.jsonl": [],
        "rejected.jsonl": [],
    },
    "label": {
        "steps.jsonl": [SteppedSolution(problem_id="b", question="?", steps=("x", "y"), labels=(1.0, None), labeller="me", correct=True)],
        "rankings.jsonl": [RankedList(seed_id="a", items=(RankedItem(text="x", rank=0, scores={"precision": 1.0}), RankedItem(text="y", rank=1)), labeller="me")],
    },
}  # fmt: skip
RESULT = {"kept": 2, "eliminated": {"refusal": 1}, "flawed": 0.25, "teacher": {"seconds": 3.5}, "rounds": {"1": {"pass_rate": 0.5}}}


@pytest.fixture
def folders(tmp_path):
    for stage, files in ROWS.items():
        for file, rows in files.items():
            write_jsonl(tmp_path / stage / file, rows)
        write_card(CONFIG, stage, tmp_path / stage, RESULT)
    return tmp_path


@pytest.mark.parametrize("stage", ROWS)
def test_datasets_loads_every_table_as_it_was_written(folders, tmp_path_factory, stage):
    from datasets import load_dataset

    for table in TABLES[stage]:
        rows = ROWS[stage][table.file]
        if rows:
            loaded = load_dataset(str(folders / stage), table.config, cache_dir=str(tmp_path_factory.mktemp("cache")))[table.split]
            assert [table.record.model_validate(_present(row)) for row in loaded] == rows
            assert loaded.column_names == list(table.record.model_fields)


def _present(value):
    """Without what a row did not have."""
    if isinstance(value, dict):
        return {key: _present(one) for key, one in value.items() if one is not None}
    return [_present(one) for one in value] if isinstance(value, list) else value


def test_the_card_tells_how_many_and_how_made_and_names_no_machine(folders):
    cards = {stage: (folders / stage / "README.md").read_text() for stage in ROWS}
    assert "- `evolved.jsonl`: 2 evolved problems" in cards["evolve"] and "contamination.jsonl" not in cards["evolve"]
    assert "Made by judge-1 in" in cards["evolve"] and "- eliminated: refusal: 1" in cards["evolve"] and "- flawed: 0.25" in cards["evolve"]
    assert "Taken from train.jsonl." in cards["problems"] and "train.jsonl; their licence is not known here" in cards["label"]
    assert not any(word in card for card in cards.values() for word in ("/home/me", "10.0.0", "seconds", str(folders)))


def test_the_same_rows_have_the_same_card(folders, tmp_path):
    before = (folders / "evolve" / "README.md").read_bytes()
    write_card(CONFIG, "evolve", folders / "evolve", RESULT | {"teacher": {"seconds": 9}})
    assert (folders / "evolve" / "README.md").read_bytes() == before and not list(folders.rglob("*.partial"))


def test_no_fingerprint_hangs_on_a_card(tmp_path):
    run = RunDir(tmp_path / "run")
    for name in ("evolve", "prm"):
        folder = run.start(name, {})
        (folder / "rows.jsonl").write_text("{}\n")
        (folder / "model").mkdir()
        (folder / "model" / "README.md").write_text("a model's card is its own")
        if name == "evolve":
            (folder / "README.md").write_text("words")
        run.finish(name, {}, 1.0, {})
    assert run.outputs_digest("evolve") == run.outputs_digest("prm")
    assert set(json.loads((tmp_path / "run" / "evolve" / "manifest.json").read_text())["files"]) == {"rows.jsonl", "model/README.md"}


def test_a_stage_without_rows_has_no_card(tmp_path):
    for stage in ("sft", "evolve"):
        write_card(CONFIG, stage, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_columns_by_hand():
    class Part(BaseModel):
        a: float | None = None

    class Row(BaseModel):
        one: Literal[1] = 1
        kind: Literal["x", "y"] | None = None
        texts: tuple[str, ...]
        parts: tuple[Part, ...]
        pairs: tuple[float | None, ...] | None = None
        nested: Part | None = None
        other: dict[str, float] | None = None
        right: bool = True

    assert features(Row) == [
        {"name": "one", "dtype": "int64"},
        {"name": "kind", "dtype": "string"},
        {"name": "texts", "list": "string"},
        {"name": "parts", "list": [{"name": "a", "dtype": "float64"}]},
        {"name": "pairs", "list": "float64"},
        {"name": "nested", "struct": [{"name": "a", "dtype": "float64"}]},
        {"name": "other", "dtype": "json"},
        {"name": "right", "dtype": "bool"},
    ]
