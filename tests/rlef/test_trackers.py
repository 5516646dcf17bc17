"""TensorBoard and trackio hold what was logged, once, after a stage that goes on too; one that is not installed is a user's mistake."""

from __future__ import annotations

import json
import sys

import pytest

from rlef.config import TrackingSection
from rlef.errors import UserError
from rlef.trackers.base import Html
from rlef.tracking import Tracker


def opened(root, backend) -> Tracker:
    tracker = Tracker.open("ppo", "ppo", root, TrackingSection(backends=(backend,), project="ours"), {"lr": 1}, run_id=None)
    tracker.quiet = True
    return tracker


def twice(root, backend) -> None:
    """A stage that goes on from its second row of three."""
    (root / "checkpoint").mkdir(parents=True)
    first = opened(root, backend)
    for step in (1, 2, 3):
        first.log({"reward/total": step / 10, "x": float("nan")}, step, {"kl": "far"} if step == 2 else None)
        if step == 2:
            first.keep(root / "checkpoint")
    first.close()
    second = opened(root, backend)
    second.restore(root / "checkpoint")
    second.log({"reward/total": 0.5}, 3)
    second.table("rollouts", ["text", "steps"], [["a|b", Html("<b>s</b>", "s\nt")]])
    second.summary({"ppo": {"iterations": 3}})
    second.close()


@pytest.mark.parametrize("backend", ["tensorboard", "trackio"])
def test_what_is_not_installed_names_its_extra(tmp_path, monkeypatch, backend):
    for name in ("torch.utils.tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=backend) as told:
        opened(tmp_path, backend)
    assert f"pip install 'rlef[{backend}]'" in told.value.fix


def test_no_service_at_all_is_metrics_alone(tmp_path):
    tracker = Tracker.open("ppo", "ppo", tmp_path, TrackingSection(backends=()), {}, run_id=None)
    tracker.log({"a": 1.0}, 1)
    assert tracker.backends == [] and (tmp_path / "metrics.jsonl").is_file() and not (tmp_path / "wandb").exists()


def test_tensorboard_holds_each_row_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    twice(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ppo"))
    events.Reload()
    assert [(one.step, round(one.value, 3)) for one in events.Scalars("reward/total")] == [(1, 0.1), (2, 0.2), (3, 0.5)]
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts == {"parameters", "alert/ppo: kl", "rollouts", "summary"}
    (table,) = events.Tensors("rollouts/text_summary")
    assert table.step == 3 and table.tensor_proto.string_val[0].decode() == "|text|steps|\n|---|---|\n|a\\|b|s t|"


def test_trackio_holds_each_row_once(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    import trackio
    from trackio import sqlite_storage, utils

    for module in (trackio, sqlite_storage, utils):  # it reads TRACKIO_DIR as it is imported
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    root = tmp_path / "run"
    twice(root, "trackio")
    (run,) = trackio.Api().runs("ours")
    assert run.name == "run/ppo" and run.config["lr"] == 1
    rows = sqlite_storage.SQLiteStorage.get_logs("ours", "run/ppo")
    assert [(row["step"], row["reward/total"]) for row in rows if "reward/total" in row] == [(1, 0.1), (2, 0.2), (3, 0.5)]
    assert any("rollouts" in row for row in rows) and any(row.get("summary/ppo/iterations") == 3 for row in rows)
    assert [(one["title"], one["text"]) for one in run.alerts()] == [("ppo: kl", "step 2: far")]
    assert json.dumps(rows, default=str)
