"""Rows, truncation and a real offline W&B run."""

from __future__ import annotations

import json
import time

import pytest

from rlef.config import TrackingSection
from rlef.tracking import Tracker


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_json_and_what_is_not_finite_is_null(tmp_path):
    tracker = Tracker("ppo", tmp_path / "m.jsonl", quiet=True)
    tracker.log({"a": 1.0, "b": float("nan")}, 3)
    (row,) = rows(tmp_path / "m.jsonl")
    assert row["stage"] == "ppo" and row["step"] == 3 and row["a"] == 1.0 and row["b"] is None


def test_truncation_drops_later_rows_of_this_stage_and_a_half_line(tmp_path):
    file = tmp_path / "m.jsonl"
    mine, other = Tracker("ppo", file, quiet=True), Tracker("sft", file, quiet=True)
    for step in (1, 2, 3):
        mine.log({"a": step}, step)
        other.log({"a": step}, step)
    with file.open("a") as handle:
        handle.write('{"stage": "pp')
    mine.truncate(1)
    assert [(row["stage"], row["step"]) for row in rows(file)] == [("ppo", 1), ("sft", 1), ("sft", 2), ("sft", 3)]


def test_progress_without_a_terminal(capsys):
    tracker = Tracker("x", None)
    with tracker.progress("work", 2) as advance:
        advance(1)
        advance(1, reward=0.5)
    assert "work: 2/2" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_offline_needs_no_key_and_writes_below_the_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = Tracker.open("ppo", "ppo", tmp_path, TrackingSection(), {"stage": {"lr": 1}}, run_id=None)
    tracker.log({"reward/total": 0.5}, 1)
    tracker.table("rollouts", ["text"], [["hello"]])
    tracker.plot("prm/calibration", ["mean score", "share right"], [[0.1, 0.2], [0.9, 0.8]])
    identity = tracker.wandb_id
    tracker.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert identity in file.name
    end = time.monotonic() + 20  # W&B's own process writes the end of the file
    while not all(word in file.read_bytes() for word in (b"reward/total", b"wandb/line/v0")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert list(file.parent.glob("files/media/table/prm/calibration_table_*.table.json"))


def test_a_bar_within_a_bar_shares_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tracker = Tracker("x", None)
    with tracker.progress("outer", 1) as outer:
        with tracker.progress("inner", 1) as inner:
            inner(1, loss=0.5)
        outer(1)
        assert [task.description for task in tracker.bars.tasks] == ["outer"]
    assert tracker.bars is None
