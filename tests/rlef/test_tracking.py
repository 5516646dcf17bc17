"""Rows, truncation and a real offline W&B run."""

from __future__ import annotations

import json
import time

import pytest

from rlef.config import TrackingSection
from rlef.tracking import Tracker, mend


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_json_and_what_is_not_finite_is_null(tmp_path):
    tracker = Tracker("ppo", tmp_path / "m.jsonl", quiet=True)
    tracker.log({"a": 1.0, "b": float("nan")}, 3)
    (row,) = rows(tmp_path / "m.jsonl")
    assert row["stage"] == "ppo" and row["step"] == 3 and row["a"] == 1.0 and row["b"] is None


@pytest.mark.parametrize("tail", [b'{"stage": "pp', b"\xff\x00{}\n", b"7\n", b'{"stage": "ppo", "step": 2, "a": 9}\n'], ids=str)
def test_a_stage_goes_on_from_the_rows_of_its_checkpoint_whatever_became_of_later_ones(tmp_path, tail):
    file, checkpoint = tmp_path / "m.jsonl", tmp_path / "checkpoint"
    checkpoint.mkdir()
    mine, other = Tracker("ppo", file, quiet=True), Tracker("sft", file, quiet=True)
    for step in (1, 2, 3):
        mine.log({"a": step}, step)
        other.log({"a": step}, step)
        if step == 2:
            mine.keep(checkpoint)
    with file.open("ab") as handle:
        handle.write(tail)
    mine.restore(checkpoint)
    assert [(row["stage"], row["step"]) for row in rows(file)] == [("sft", 1), ("sft", 2), ("sft", 3), ("ppo", 1), ("ppo", 2)]
    assert [row["a"] for row in rows(file)][-2:] == [1.0, 2.0]
    mine.restore(None)
    assert {row["stage"] for row in rows(file)} == {"sft"}


@pytest.mark.parametrize("damage", ["cut off", "another number", "another stage", "not UTF-8"])
def test_rows_of_a_finished_stage_are_put_back(tmp_path, damage):
    file = tmp_path / "m.jsonl"
    for stage in ("sft", "ppo"):
        (tmp_path / stage).mkdir()
        tracker = Tracker(stage, file, quiet=True)
        for step in (1, 2):
            tracker.log({"a": step}, step)
        tracker.keep(tmp_path / stage)
    whole = file.read_bytes()
    start, end = whole[:-20], whole[-20:]
    made = {
        "cut off": whole[:-9],
        "another number": start + end.replace(b"2.0", b"3.0"),
        "another stage": whole.replace(b'"ppo", "step": 2', b'"pqo", "step": 2'),
        "not UTF-8": whole[:-9] + b"\xff" + whole[-8:],
    }
    assert made[damage] != whole
    file.write_bytes(made[damage])
    mend(file, {stage: tmp_path / stage for stage in ("sft", "ppo")})
    assert file.read_bytes() == whole


def test_progress_without_a_terminal(capsys):
    tracker = Tracker("x", None)
    with tracker.progress("work", 2) as advance:
        advance(1)
        advance(1, reward=0.5)
    assert "work: 2/2" in capsys.readouterr().err


def test_progress_after_a_checkpoint_counts_what_was_done_before_and_its_time_alone(capsys, monkeypatch):
    now = iter((0.0, 0.0, 30.0, 60.0))
    monkeypatch.setattr("rlef.tracking.time.monotonic", lambda: next(now))
    with Tracker("x", None).progress("work", 40, done=36) as advance:
        advance(1)
        advance(3)
    assert capsys.readouterr().err.split("\n")[:2] == ["  work: 37/40, 90 s left  ", "  work: 40/40, 0 s left  "]


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
