"""The script that looks at a report plants hostile texts where a model's words stand; the looking itself needs a browser."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from rlef.records import Lineage, Problem, read_jsonl, write_jsonl
from rlef.report.page import write_report

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("look_at_report", ROOT / "scripts" / "look_at_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planted_texts_are_there_and_the_run_is_left_as_it_was(script, tmp_path):
    run = tmp_path / "run"
    (run / "evolve").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"stages": {"evolve": {"kind": "evolve"}}}))
    lineage = Lineage(parent="x", root="x", operation="up.add_step", round=1, teacher="t")
    rows = [Problem(id=str(number), question="q", lineage=lineage) for number in range(4)]
    write_jsonl(run / "evolve" / "evolved.jsonl", rows)
    result = {"made": 4, "kept": 4, "operations": {}, "eliminated": {}}
    (run / "evolve" / "manifest.json").write_text(
        json.dumps({"fingerprint": {}, "files": {}, "seconds": 1.0, "result": result, "sha256": "x"})
    )
    script.plant(run, tmp_path / "planted")
    planted = read_jsonl(tmp_path / "planted" / "evolve" / "evolved.jsonl", Problem)
    assert [row.question for row in planted] == [f"{script.HOSTILE}q", "q", "q", f"{script.HOSTILE}q"]
    assert planted[0].lineage.operation == f"{script.HOSTILE}up.add_step" and planted[0].id == "0"
    assert list(read_jsonl(run / "evolve" / "evolved.jsonl", Problem)) == rows
    page = write_report(tmp_path / "planted").read_text()
    assert "<img" not in page and "&lt;img src=x" in page and "\u202e" not in page and "\\u202eturned" in page


def test_without_a_browser_it_says_so_and_does_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.shutil, "which", lambda name: None if name == "chromium" else "/bin/true")
    monkeypatch.setattr(sys, "argv", ["look_at_report.py", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert script.main() == 0 and "skipped: chromium" in capsys.readouterr().out and not (tmp_path / "out").exists()
