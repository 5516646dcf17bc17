"""A pipeline that is killed in the middle of PPO and started again is, in W&B's files, what was logged: each run, row, alert, table,
artifact and input digest, once."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlef.lineage import TYPES, alias, edges
from rlef.load_config import load_config
from rlef.pipeline import resolve_inputs
from rlef.run_dir import RunDir, digest
from rlef.trackers import wandb, wandb_records
from tests.wandb_server import serving

CONFIG = Path(__file__).parent / "configs" / "tiny.yaml"
TABLES = {
    "evolve": {"evolved"},
    "label": {"ranked"},
    "irm": {"irm/calibration_table"},
    "prm": {"prm/confusion", "prm/calibration_table"},
    "ppo": {"rollouts", "disagreements"},
    "dpo": {"pairs"},
    "grpo": {"rollouts", "disagreements"},
    "evaluate": {"evaluation"},
}


def rows(root: Path, stage: str) -> list[dict]:
    found = [json.loads(line) for line in (root / "metrics.jsonl").read_text(errors="replace").splitlines() if line.endswith("}")]
    return [row for row in found if row["stage"] == stage]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(run directory, stage -> what its one file to be synced holds, what was shown of alarms)"""
    root = tmp_path_factory.mktemp("killed") / "the run"
    # A learning rate that no policy survives: it must raise alarms on both sides of the kill.
    changed = ["ppo.iterations=12", "ppo.save_every=2", "ppo.policy_lr=0.01", "tracking.wandb=offline", "tracking.backends=[wandb]"]
    command = [sys.executable, "-m", "rlef", "run", str(CONFIG), f"run.dir={root}", *changed]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 300
    while not ((root / "metrics.jsonl").is_file() and any(row["step"] >= 7 for row in rows(root, "ppo"))):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    before, _ = process.communicate()
    assert not (root / "ppo" / "manifest.json").exists()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout

    found = {}
    for stage, run_id in RunDir(root).info()["wandb"].items():
        (file,) = (root / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")
        while not (read := wandb_records.read(file)).ended:
            assert time.monotonic() < end
            time.sleep(0.05)
        found[stage] = read
    return root, found, before + done.stdout


@pytest.mark.slow
def test_each_stage_is_one_run_of_the_group_and_the_killed_start_has_its_id(runs):
    root, found, _ = runs
    config = load_config(root / "config.yaml", [])
    assert list(found) == list(config.stages)
    assert {(run.group, run.name, run.job_type) for run in found.values()} == {
        ("the run", f"the run/{name}", name) for name in config.stages
    }
    assert len(list((root / "wandb").glob("offline-run-*"))) == len(config.stages)
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", str(root / "wandb")], capture_output=True, text=True, check=True
    )
    assert f"Would sync {len(config.stages)} run(s)" in shown.stderr + shown.stdout  # what was cut off is not among them
    (cut_off,) = (root / "wandb" / wandb.CUT_OFF).glob("*/*.wandb")
    assert cut_off.parent.name.endswith(f"-{found['ppo'].run_id}") and found["ppo"].run_id == RunDir(root).info()["wandb"]["ppo"]
    assert wandb_records.read(cut_off).run_id in ("", found["ppo"].run_id)  # W&B's process dies with what it had not written yet


@pytest.mark.slow
def test_rows_and_alerts_are_those_of_metrics_jsonl(runs):
    root, found, shown = runs
    for stage, run in found.items():
        logged = rows(root, stage)
        want = [{key: value for key, value in row.items() if isinstance(value, float) and key != "time"} for row in logged]
        assert run.rows == [row | {"global_step": one["step"]} for row, one in zip(want, logged, strict=True)], stage
        told = [
            (f"{stage}: {name.replace('_', ' ')}", f"step {row['step']}: {message}")
            for row in logged
            for name, message in row.get("alerts", {}).items()
        ]
        assert run.alerts == told and len({title for title, _ in told}) == len(told), stage
        assert all(text.split(": ", 1)[1] in shown for _, text in told)
    assert [row["global_step"] for row in found["ppo"].rows] == list(range(1, 13))
    alerts = [int(text.split(":")[0].removeprefix("step ")) for _, text in found["ppo"].alerts]
    assert min(alerts) <= 6 and len(alerts) == len(json.loads((root / "ppo" / "manifest.json").read_text())["result"]["alarms"])


@pytest.mark.slow
def test_tables_hold_what_the_stages_files_hold(runs):
    root, found, _ = runs
    for stage, run in found.items():
        may_be_empty = {"disagreements"}
        assert run.tables.keys() - may_be_empty == TABLES.get(stage, set()) - may_be_empty, stage

    def count(file: str) -> int:
        return len((root / file).read_text().splitlines())

    assert found["evolve"].tables["evolved"]["nrows"] == count("evolve/evolved.jsonl")
    assert found["ppo"].tables["rollouts"]["nrows"] == count("ppo/rollouts.jsonl") == 16
    assert found["dpo"].tables["pairs"]["nrows"] == count("dpo/pairs.jsonl")
    lists = [json.loads(line) for line in (root / "label" / "rankings.jsonl").read_text().splitlines()]
    assert found["label"].tables["ranked"]["nrows"] == sum(len(one["items"]) for one in lists)
    results = json.loads((root / "evaluate" / "results.json").read_text())
    assert found["evaluate"].tables["evaluation"]["nrows"] == len(results)
    for policy, row in results.items():
        assert found["evaluate"].summary[f"evaluate/{policy}/pass@1"] == row["pass@1"]


@pytest.mark.slow
def test_artifacts_and_input_digests_are_those_of_the_manifests(runs):
    root, found, _ = runs
    run_dir, config = RunDir(root), load_config(root / "config.yaml", [])
    drawn = set()
    for stage, run in found.items():
        manifest = run_dir.manifest(stage)
        (output,) = run.outputs
        assert (output.name, output.type, set(output.aliases)) == (
            f"the-run-{stage}",
            TYPES[config.stages[stage].kind],
            {"latest", alias(manifest.fingerprint)},
        )
        metadata = json.loads(output.metadata)
        assert metadata["digest"] == digest(manifest.files) and metadata["fingerprint"] == digest(manifest.fingerprint)
        held = {entry.path: entry.digest for entry in output.manifest.contents}
        files = {file: root / stage / file for file in manifest.files} | (
            {"report.html": root / "report.html"} if stage == "report" else {}
        )
        assert held == {name: base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode() for name, file in files.items()}
        assert all(Path(entry.local_path) == files[entry.path] for entry in output.manifest.contents)

        inputs = run.config["inputs"]
        assert {key: one["digest"] for key, one in inputs.items()} == {
            key.removeprefix("input "): value for key, value in manifest.fingerprint.items() if key.startswith("input ")
        }
        assert inputs.keys() == resolve_inputs(config, stage).keys()
        drawn |= {(stage, key, one["artifact"]) for key, one in inputs.items()}
    assert drawn == {(edge.stage, edge.key, edge.artifact) for edge in edges(run_dir)}
    names = {f"{output.name}:{one}" for run in found.values() for output in run.outputs for one in output.aliases}
    assert {artifact for _, _, artifact in drawn} <= names


@pytest.mark.slow
def test_wandb_sync_sends_each_row_alert_and_artifact_once(runs, tmp_path):
    """W&B's own command, against a server that keeps what it is sent."""
    root, found, _ = runs
    shutil.copytree(root / "wandb", tmp_path / "wandb", symlinks=True)  # it marks what it sent
    folders = sorted(map(str, (tmp_path / "wandb").glob("offline-run-*")))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    with serving() as server:
        environment |= {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *folders], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0 and done.stderr.count("Finished syncing") == len(found), done.stderr
    assert server.groups == {run.run_id: "the run" for run in found.values()}
    for stage, run in found.items():
        sent = sorted(server.history.get(run.run_id, []), key=lambda one: one[0])
        assert [start for start, _ in sent] == [sum(len(rows) for _, rows in sent[:place]) for place in range(len(sent))], stage
        history = [row for _, rows in sent for row in rows]
        assert [row["global_step"] for row in history] == [row["global_step"] for row in run.history], stage
        figures = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history]
        assert [row for row in figures if all(isinstance(value, int | float) for value in row.values())] == run.rows, stage
        assert server.alerts.get(run.run_id, []) == run.alerts
    outputs = {(one.name, one.type, frozenset(one.aliases)) for run in found.values() for one in run.outputs}
    sent_outputs = [one for one in server.artifacts if one[1] != "run_table"]
    assert len(sent_outputs) == len(found) and set(sent_outputs) == outputs
    tables = {table["path"] for run in found.values() for table in run.tables.values()}
    assert all(server.files[path] > 0 for path in tables)
