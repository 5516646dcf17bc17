"""W&B read back from its offline files, record by record: what was logged, under which run, with what alerts, artifacts and inputs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlef.config import STAGE_TYPES, TrackingSection
from rlef.lineage import TYPES, output_of
from rlef.run_dir import RunDir, digest
from rlef.trackers import wandb, wandb_records
from rlef.trackers.base import Artifact, Html
from rlef.tracking import Tracker
from tests.wandb_server import serving

INPUTS = {"init": {"path": "run/sft", "digest": "d" * 64, "artifact": "r-sft:abc"}}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))


def opened(root, run_id=None, **settings) -> Tracker:
    parameters = {"stage": {"lr": 1}, "inputs": INPUTS}
    tracker = Tracker.open("ppo", "ppo", root, TrackingSection(**settings), parameters, run_id=run_id)
    tracker.quiet = True
    return tracker


def written(root, run_id, place=".", until="ended"):
    """The one file of that run, once W&B's own process has written its end; or system metrics."""
    (file,) = (root / "wandb" / place).glob(f"offline-run-*-{run_id}/*.wandb")
    end = time.monotonic() + 20
    while not getattr(found := wandb_records.read(file), until):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found, file.parent / "files"


def policy(folder, size=10) -> Artifact:
    file = folder / "model.safetensors"
    file.write_bytes(b"w" * size)
    return Artifact("run-ppo", "policy", {"model/model.safetensors": file}, ("latest", "abc"), {"digest": "d", "result": {"loss": 0.5}})


@pytest.mark.slow
def test_all_that_is_logged_is_in_the_file(offline, tmp_path):
    root = tmp_path / "my run"
    root.mkdir()
    tracker = opened(root)
    for step, reward in ((1, 0.5), (2, 0.75), (3, 0.25)):
        told = {"reward_gap": f"it games the reward in {step}"} if step != 1 else {}
        tracker.log({"reward/total": reward, "ppo/kl": 1.0 / step, "x": float("nan")}, step, told)
    tracker.table("rollouts", ["text", "steps"], [["2 < 3 | a", Html("<b>2 &lt; 3</b>", "2 < 3")]])
    tracker.plot("prm/calibration", ["mean score", "share right"], [[0.1, 0.2], [0.9, 0.8]])
    tracker.summary({"ppo": {"iterations": 3, "deep": {"pass@1": 0.5}, "text": "not a figure"}})
    tracker.artifact(policy(tmp_path))
    identity = tracker.wandb_id
    written(root, identity, until="system")
    tracker.close()
    run, files = written(root, identity)

    assert (run.run_id, run.group, run.job_type, run.name) == (identity, "my run", "ppo", "my run/ppo")
    assert run.config["inputs"] == INPUTS and run.config["stage"] == {"lr": 1}
    assert run.rows == [
        {"reward/total": 0.5, "ppo/kl": 1.0, "global_step": 1},
        {"reward/total": 0.75, "ppo/kl": 0.5, "global_step": 2},
        {"reward/total": 0.25, "ppo/kl": 1 / 3, "global_step": 3},
    ]
    assert [row["global_step"] for row in run.history] == [1, 2, 3, 3, 3]  # tables too
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4]  # no call is merged into another
    assert run.metrics["*"][0] == "global_step" and run.metrics["reward/total"] == ("global_step", {"max"})
    assert run.summary["reward/total"] == {"last": 0.25, "max": 0.75} and run.summary["ppo/kl"] == {"last": 1 / 3, "max": 1.0}
    assert run.summary["ppo/iterations"] == 3 and run.summary["ppo/deep/pass@1"] == 0.5 and "ppo/text" not in run.summary
    assert run.alerts == [("ppo: reward gap", "step 2: it games the reward in 2")]  # once
    assert set(run.tables) == {"rollouts", "prm/calibration_table"}
    table = json.loads((files / run.tables["rollouts"]["path"]).read_text())
    assert table["columns"] == ["text", "steps"] and table["data"][0][0] == "2 < 3 | a"
    (held,) = [one for one in run.artifacts if one.type == "run_table" and one.name.endswith("rollouts")]
    (page,) = [Path(one.local_path) for one in held.manifest.contents if one.path.endswith(".html")]
    assert page.read_text() == "<b>2 &lt; 3</b>"
    (output,) = run.outputs
    assert (output.name, output.type, set(output.aliases)) == ("run-ppo", "policy", {"latest", "abc"})
    assert json.loads(output.metadata) == {"digest": "d", "result": {"loss": 0.5}}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1.0, 0.0, None])
def test_no_file_is_copied_and_a_large_one_is_a_reference(offline, tmp_path, limit):
    tracker = opened(tmp_path, artifact_mb=limit)
    tracker.artifact(policy(tmp_path, size=5000))
    tracker.close()
    run, _ = written(tmp_path, tracker.wandb_id)
    entries = [entry for one in run.outputs for entry in one.manifest.contents]
    md5 = base64.b64encode(hashlib.md5(b"w" * 5000).digest()).decode()
    told = [(entry.path, entry.digest, entry.size, entry.local_path, entry.ref) for entry in entries]
    name, file = "model/model.safetensors", tmp_path / "model.safetensors"
    assert (
        told
        == {
            1.0: [(name, md5, 5000, str(file), "")],
            0.0: [(name, md5, 5000, "", file.as_uri())],
            None: [],
        }[limit]
    )
    assert not [one for one in (tmp_path / "data").rglob("*") if one.is_file() and one.stat().st_size == 5000]


@pytest.mark.slow
def test_a_stage_that_goes_on_is_the_same_run_with_each_row_and_alert_once(offline, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    first = opened(tmp_path)
    for step in (1, 2, 3):
        first.log({"reward/total": step / 10}, step, {f"at_{step}": "told"})
        if step == 2:
            first.keep(checkpoint)
    identity = first.wandb_id
    first.close(failed=True)

    second = opened(tmp_path, identity)
    second.restore(checkpoint)
    for step in (3, 4):
        second.log({"reward/total": step / 10}, step, {"at_4": "told"} if step == 4 else None)
    second.close()
    run, _ = written(tmp_path, identity)
    before, _ = written(tmp_path, identity, wandb.CUT_OFF)
    assert run.run_id == before.run_id == identity
    assert run.rows == [{"reward/total": step / 10, "global_step": step} for step in (1, 2, 3, 4)]
    assert run.alerts == [(f"ppo: at {step}", f"step {step}: told") for step in (1, 2, 4)]
    assert (before.exit_code, run.exit_code) == (1, 0) and len(before.rows) == 3 and before.alerts[-1][0] == "ppo: at 3"
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("alerts") for row in kept] == [{"at_1": "told"}, {"at_2": "told"}, None, {"at_4": "told"}]
    assert capsys.readouterr().err.count("alarm") == 4


@pytest.mark.slow
def test_neither_keys_nor_the_command_line_reach_wandb(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel")
    monkeypatch.setattr(sys, "argv", ["rlef", "run", "c.yaml", "teacher.base_url=http://user:pass-sentinel@host/v1"])
    tracker = opened(tmp_path)
    tracker.log({"a": 1.0}, 1)
    tracker.close()
    written(tmp_path, tracker.wandb_id)
    assert sys.argv[1] == "run"
    assert not [file for file in (tmp_path / "wandb").rglob("*") if file.is_file() and b"sentinel" in file.read_bytes()]


class Recorder:
    """A service that keeps what it is told."""

    def __init__(self, have=0):
        self.have, self.told = have, []

    def log(self, row, step):
        self.told.append((step, dict(row)))

    def alert(self, title, text, step):
        self.told.append((step, title))


def test_a_service_that_kept_the_rows_of_an_earlier_start_gets_only_those_that_it_has_not(tmp_path):
    before = Tracker("ppo", tmp_path / "m.jsonl", quiet=True)
    for step in (1, 2):
        before.log({"a": step}, step, {"kl": "far"})
    fresh, kept = Recorder(), Recorder(have=3)  # the server holds a row more than the checkpoint that the stage goes on from
    tracker = Tracker("ppo", tmp_path / "m.jsonl", [fresh, kept], quiet=True)
    for step in (3, 4):
        tracker.log({"a": step}, step, {"kl": "far"})
    told = [(1, {"a": 1}), (1, "ppo: kl"), (2, {"a": 2}), (2, "ppo: kl"), (3, {"a": 3}), (3, "ppo: kl"), (4, {"a": 4}), (4, "ppo: kl")]
    assert fresh.told == told and kept.told == told[-2:]


@pytest.mark.slow
def test_online_a_stage_that_goes_on_is_the_same_run_with_each_row_and_alert_once(offline, tmp_path, monkeypatch, capsys):
    """Against a server that is made up: it holds three rows, the checkpoint two."""
    import wandb as sdk

    sdk.teardown()  # it reads the environment once
    (tmp_path / "checkpoint").mkdir()
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        first = opened(tmp_path, wandb="online")
        for step in (1, 2, 3):
            first.log({"reward/total": step / 10}, step, {f"at_{step}": "told"})
            if step == 2:
                first.keep(tmp_path / "checkpoint")
        first.close(failed=True)
        second = opened(tmp_path, first.wandb_id, wandb="online")
        second.restore(tmp_path / "checkpoint")
        for step in (3, 4):
            second.log({"reward/total": step / 10}, step, {f"at_{step}": "told"})
        second.close()
        sdk.teardown()
    sent = [
        (start, [(row["_step"], row["global_step"], row["reward/total"]) for row in rows]) for start, rows in server.history[first.wandb_id]
    ]
    assert second.wandb_id == first.wandb_id and [one for _, rows in sent for one in rows] == [
        (step - 1, step, step / 10) for step in (1, 2, 3, 4)
    ]
    assert sent[-1][0] == 3  # after what is there, not over it
    assert server.alerts[first.wandb_id] == [(f"ppo: at {step}", f"step {step}: told") for step in (1, 2, 3, 4)]
    assert "has no artifact r-sft:abc" in capsys.readouterr().err


def test_online_the_inputs_become_edges_and_one_that_is_missing_is_told(capsys):
    import wandb as sdk

    def use(name):
        if "gone" in name:
            raise sdk.Error("no such artifact")
        used.append(name)

    used: list[str] = []
    run = wandb.WandbRun(SimpleNamespace(offline=False, starting_step=0, use_artifact=use), 64)
    run.use({"init": {"artifact": "r-sft:abc"}, "prm": {"artifact": "r-gone:abc"}, "irm": {"artifact": None}})
    assert used == ["r-sft:abc"] and "r-gone:abc" in capsys.readouterr().err


@pytest.mark.slow
def test_of_a_sweeps_trial_one_stages_run_has_the_id_that_the_agent_gave(offline, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("wandb_version: 1\nppo.kl_coef: {value: 0.05}\n")
    values = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "trial1", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "config.yaml")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    ids = {}
    for stage in ("sft", "evaluate", "report"):
        tracker = Tracker.open(stage, stage, tmp_path, TrackingSection(), {"run": {}}, run_id=None)
        ids[stage] = tracker.wandb_id
        tracker.close()
    assert {name: os.environ[name] for name in values} == values
    assert ids["evaluate"] == "trial1" and len(set(ids.values())) == 3
    runs = {stage: written(tmp_path, run_id)[0] for stage, run_id in ids.items()}
    assert {stage: run.config.get("ppo.kl_coef") for stage, run in runs.items()} == {"sft": None, "evaluate": 0.05, "report": None}


def test_an_artifact_names_what_went_in_and_what_came_out(tmp_path):
    run = RunDir(tmp_path / "my run")
    folder = run.start("sft", {"sft.lr": "1"})
    (folder / "model").mkdir()
    (folder / "model" / "w").write_text("weights")
    artifact = output_of(run, "sft", "sft", {"loss": 0.5, "nan": float("nan"), "by": {"depth": {"1": 2}}, "list": [1]})
    assert artifact.name == "my-run-sft" and artifact.type == "policy" and artifact.files == {"model/w": folder / "model" / "w"}
    assert artifact.aliases == ("latest", digest({"sft.lr": "1"})[:12])
    run.finish("sft", {"sft.lr": "1"}, 1.0, {})
    assert artifact.metadata["digest"] == run.outputs_digest("sft") and artifact.metadata["result"] == {"loss": 0.5, "by/depth/1": 2}
    assert set(TYPES) == set(STAGE_TYPES)
