"""Shards: what is finished is not done again, ranks share files alone, and a label stage that is killed goes on to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from rlef.config import Config
from rlef.records import Record, Solution, read_jsonl, write_jsonl
from rlef.stages import respond
from rlef.stages.context import StageContext
from rlef.stages.shards import Shards
from rlef.symbolic import make_problems
from rlef.tracking import Tracker

ROOT = Path(__file__).parents[3]
PIECES = [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]


class Row(Record):
    value: float | None = None


class Work:
    def __init__(self, fails_at=None):
        self.asked, self.fails_at, self.told = [], fails_at, []

    def __call__(self, piece):
        if piece[0] == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(piece)
        return [Row(value=number / 3) for number in piece]

    def rows(self, shards):
        return [row.value for row in shards.rows("work", PIECES, self, Row, self.told.append)]


@pytest.fixture
def shards(tmp_path):
    config = Config.model_validate({"model": {"random": {}}, "stages": {"label": {"kind": "label"}}})
    ctx = StageContext("label", config, config.stages["label"], {}, tmp_path, Tracker.null())
    return lambda *sizes: Shards(ctx, *sizes)


def test_finished_shards_are_read_and_not_done_again(shards):
    first = Work(fails_at=6)
    with pytest.raises(KeyboardInterrupt):
        first.rows(shards(8))
    second = Work()
    assert second.rows(shards(8)) == [number / 3 for number in range(10)]
    assert first.asked == PIECES[:2] and second.asked == PIECES[2:] and sorted(second.told) == [1, 3, 3, 3]
    other = Work()  # rows that were decoded in other company
    assert other.rows(shards(4)) == [number / 3 for number in range(10)] and other.asked == PIECES


def test_ranks_take_turns_and_all_get_all_rows(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    works, found = {}, {}
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        works[rank] = Work()
        thread = threading.Thread(
            target=lambda mine, work, rank: found.update({rank: work.rows(mine)}), args=(shards(8), works[rank], rank)
        )
        thread.start()
    thread.join(10)
    end = time.monotonic() + 10
    while len(found) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert works["0"].asked == PIECES[::2] and works["1"].asked == PIECES[1::2]
    assert found["0"] == found["1"] == [number / 3 for number in range(10)]


def test_a_teacher_in_this_process_answers_by_shards(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(respond, "CHUNK", 4)
    teacher = {"kind": "hf", "model": str(tiny_folder), "max_tokens": 12, "batch_size": 8}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": {"respond": {"kind": "respond", "samples": 2}}})
    problems = make_problems(10, depths=(1, 1), seed=0, split="train")
    write_jsonl(tmp_path / "evolved.jsonl", problems)

    def go(name):
        (tmp_path / name).mkdir(exist_ok=True)
        result = respond.run(
            StageContext("respond", config, config.stages["respond"], {"prompts": tmp_path}, tmp_path / name, Tracker.null())
        )
        return result, (tmp_path / name / "rejected.jsonl").read_bytes()

    whole = go("whole")
    files = sorted((tmp_path / "whole" / "shards" / "8").iterdir())
    rows = [row for file in files for row in read_jsonl(file, respond.Answered)]
    assert len(files) == 3 and [row.solutions[0].problem_id for row in rows] == [problem.id for problem in problems]
    assert all(isinstance(one, Solution) and one.sample == place for row in rows for place, one in enumerate(row.solutions))
    files[1].unlink()
    kept = {file: file.stat().st_mtime_ns for file in (files[0], files[2])}
    assert go("whole") == whole and files[1].is_file()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
def test_a_killed_label_stage_goes_on_to_the_same_bytes(tiny_folder, tmp_path):
    """Killed while it samples, and twice while it completes."""
    label = {"policy": str(tiny_folder), "method": "monte_carlo", "consensus": True, "temperatures": [0.7, 1.0]}
    label |= {"count": 50, "samples": 1, "completions": 2, "max_tokens": 12, "batch_size": 6, "lists": 6}
    config = {
        "model": {"random": {}, "step_delimiter": " "},
        "tracking": {"wandb": "disabled"},
        "stages": {"problems": {"seeds": 60, "held_out": 8}, "label": label},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-m", "rlef", "run", "c.yaml", f"run.dir={folder}"],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(process):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    shards = tmp_path / "killed" / "label" / "shards" / "6-32"
    kept: dict[Path, int] = {}
    for until in ("sample-00003", "monte_carlo-00000", "monte_carlo-00001"):
        process = start("killed")
        limit = time.monotonic() + 120
        while not (shards / f"{until}.jsonl").is_file():
            assert process.poll() is None and time.monotonic() < limit, process.communicate()
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
        kept = {file: file.stat().st_mtime_ns for file in shards.glob("*.jsonl")}
    names = sorted(file.stem for file in kept)
    assert len([name for name in names if name.startswith("sample")]) == 10 and "monte_carlo-00003" not in names
    end(start("killed"))
    end(start("whole"))
    for name in ("steps.jsonl", "rankings.jsonl"):
        assert (tmp_path / "killed" / "label" / name).read_bytes() == (tmp_path / "whole" / "label" / name).read_bytes()
    manifests = [json.loads((tmp_path / folder / "label" / "manifest.json").read_text()) for folder in ("killed", "whole")]
    assert manifests[0]["result"] == manifests[1]["result"] and sorted(manifests[0]["files"]) == ["rankings.jsonl", "steps.jsonl"]
    assert not shards.parent.exists()
