"""scripts/chaos.py finds what differs, damages what it should, and a W&B run that was cut off is gone on with as one, each row once."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from reward_models import checkpoints
from rlef import prompts
from rlef.config import TrackingSection
from rlef.rollout.journal import Answer, Journal
from rlef.rollout.remote import OpenAIChat
from rlef.run_dir import RunDir
from rlef.trackers import wandb_records
from rlef.tracking import Tracker

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def chaos(monkeypatch):
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "scripts" / "chaos.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chaos", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STAGES", {"sft": {}})
    return module


def finished(folder, *, weights="w", seconds=1.0, loss=0.5, step=1):
    run = RunDir(folder)
    out = run.start("sft", {})
    (out / "model.safetensors").write_text(weights)
    Tracker("sft", run.metrics_file, quiet=True).log({"sft/loss": loss, "time/step": seconds, "perf/speed": seconds}, step)
    run.finish("sft", {}, seconds, {"loss": loss, "train_seconds": seconds})
    return folder


def test_times_may_differ_and_nothing_else(chaos, tmp_path):
    whole = finished(tmp_path / "whole")
    assert chaos.differences(whole, finished(tmp_path / "slow", seconds=9.0), wandb=False) == []
    assert chaos.differences(whole, finished(tmp_path / "other", weights="v"), wandb=False) == ["sft/model.safetensors"]
    assert chaos.differences(whole, finished(tmp_path / "loss", loss=0.6), wandb=False)[1:] == ["metrics.jsonl"]
    assert chaos.differences(whole, finished(tmp_path / "step", step=2), wandb=False) == ["metrics.jsonl"]
    (tmp_path / "slow" / "sft" / "shards").mkdir()
    assert chaos.differences(whole, tmp_path / "slow", wandb=False) == ["sft/shards is left"]
    (tmp_path / "other" / "sft" / "manifest.json").unlink()
    assert chaos.differences(whole, tmp_path / "other", wandb=False)[0] == "sft: not finished"


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_to_the_newest_checkpoint_or_the_last_line(chaos, tmp_path, seed):
    for number in (1, 2):
        partial = checkpoints.begin(tmp_path / "sft" / "checkpoints", number)
        (partial / "weights").write_bytes(b"abcdefgh")
        made = checkpoints.finish(partial, {}, keep=2)
        os.utime(made / checkpoints.MANIFEST, (number, number))
    assert chaos.damage_checkpoint(tmp_path, random.Random(seed)).startswith("checkpoint, ")
    assert checkpoints.newest(tmp_path / "sft" / "checkpoints", {}).name == "checkpoint-1"
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"first\nsecond\n")
    assert chaos.damage_metrics(tmp_path, random.Random(seed)).startswith("metrics, ")
    assert file.read_bytes() != b"first\nsecond\n" and file.read_bytes().startswith(b"first\n")


def journalled(folder):
    journal = Journal(folder / "journal.sqlite")
    for number in range(20):
        journal.keep(f"k{number}", Answer(f"{number} " * 300, "stop"))
    return journal


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_journal_can_be_put_back(chaos, tmp_path, seed):
    (tmp_path / "run").mkdir()
    opened = journalled(tmp_path / "run")  # not closed: its log is there, as after a kill
    everything = {f"k{number}" for number in range(20)}
    assert chaos.answered(tmp_path / "run") == everything
    chaos.keep_journal(tmp_path / "run", tmp_path / "before")
    assert chaos.damage_journal(tmp_path / "run", random.Random(seed)).startswith("journal")
    assert chaos.answered(tmp_path / "run") <= everything
    chaos.restore_journal(tmp_path / "run", tmp_path / "before")
    assert chaos.answered(tmp_path / "run") == everything
    del opened


def test_an_interruption_comes_at_its_share_of_the_stages_processor_time(chaos):
    planned, rng = Counter({"sft": 1}), random.Random(0)
    aim = chaos.Aim(planned, {"problems": 1.0, "sft": 10.0}, rng)
    due = 5.0 + 10.0 * random.Random(0).random()
    assert not aim("problems", 4.0) and not aim("sft", 5.0) and not aim("sft", due - 0.01) and aim("sft", due)
    assert not chaos.Aim(Counter(), {"sft": 10.0}, rng)("sft", 99.0)


def test_the_first_rank_that_fails_ends_the_others(chaos, monkeypatch):
    def work(job):
        time.sleep(60.0 if os.environ["RANK"] == "0" else 0.1)
        return 3

    monkeypatch.setattr("rlef.processes.worker.main", work)
    began = time.monotonic()
    assert chaos.ranks("job", 2) == 3 and time.monotonic() - began < 30
    monkeypatch.setattr("rlef.processes.worker.main", lambda job: 0 if os.environ["WORLD_SIZE"] == "2" else 1)
    assert chaos.ranks("job", 2) == 0


def test_the_server_notes_each_call_by_the_journals_own_key(chaos, tmp_path):
    server = chaos.serve(tmp_path / "port.json", tmp_path / "requests.txt")
    try:
        url = f"http://127.0.0.1:{(tmp_path / 'port.json').read_text()}/v1"
        journal = Journal(tmp_path / "journal.sqlite")
        chat = OpenAIChat(model="teacher", base_url=url, api_key_env="NONE", concurrency=2, timeout_s=20, retries=2, journal=journal)
        texts = [prompts.JUDGE_STEPS, "1 and 2?", "1 and 2?"]
        answers = chat.complete([[{"role": "user", "content": text}] for text in texts], temperature=0.0, max_tokens=9, seed=1)
        chat.close()
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    assert answers[1] == answers[2] == "3 + 1 = 4\n4 - 1 = 3\n#### 3"
    sent, lines = chaos.sent_since(tmp_path / "requests.txt", 0)
    assert set(sent) == chaos.answered(tmp_path) and lines == 2 and chaos.sent_since(tmp_path / "requests.txt", 2) == ([], 2)


@pytest.mark.slow
def test_a_small_run_is_killed_and_ends_equal(tmp_path):
    command = [sys.executable, "scripts/chaos.py", "--kills", "3", "--wandb", "disabled", "--out", str(tmp_path), "--stages"]
    done = subprocess.run(
        [*command, "problems", "evolve", "respond"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 3 and found["wrong"] == 0


@pytest.mark.slow
def test_an_offline_wandb_run_goes_on_as_one_with_each_row_once(chaos, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def start(run_id):
        return Tracker.open("sft", "sft", tmp_path, TrackingSection(), {}, run_id=run_id)

    (tmp_path / "checkpoint").mkdir()
    first = start(None)
    for step in (1, 2, 3):
        first.log({"sft/loss": 1 / step}, step)
        if step == 2:
            first.keep(tmp_path / "checkpoint")
    first.close()
    second = start(first.wandb_id)
    second.restore(tmp_path / "checkpoint")
    for step in (3, 4):
        second.log({"sft/loss": 1 / step}, step)
    second.close()
    (tmp_path / "run.json").write_text(json.dumps({"wandb": {"sft": second.wandb_id}}))
    end = time.monotonic() + 60  # W&B's own process writes the end of the file
    while chaos.wandb_differences(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert first.wandb_id == second.wandb_id and chaos.wandb_differences(tmp_path) == []
    assert [row["step"] for row in chaos.metrics(tmp_path)["sft"]] == [1, 2, 3, 4]
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert [row["sft/loss"] for row in wandb_records.read(file).rows] == [1.0, 0.5, 1 / 3, 0.25]
