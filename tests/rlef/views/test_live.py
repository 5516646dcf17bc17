"""What `rlef watch` shows: whoever works there or worked, how far it is, and nothing of a damaged file or a hostile text."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlef.cli import main
from rlef.commands.watch import duration, frame, sparkline
from rlef.config import Config
from rlef.errors import UserError
from rlef.holder import Holder
from rlef.records import Rollout, write_jsonl
from rlef.run_dir import RunDir
from rlef.tracking import Tracker
from rlef.views import live
from rlef.views.live import Progress, look
from rlef.views.step_view import step_lines
from tests.terminal import on_terminal

NOW = 1_000_000.0
STAGES = {"problems": {"kind": "problems"}, "sft": {"kind": "sft"}, "prm": {"kind": "prm"}, "ppo": {"kind": "ppo"}}
GONE = Holder(socket.gethostname(), 2**22 + 1, 1.0)  # above Linux's largest number of a process


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    made.create(Config.model_validate({"model": {"random": {}}, "stages": STAGES}).model_dump(mode="json"))
    for name, result in (("problems", {"seeds": 8}), ("sft", {"steps": 9, "loss": 0.5})):
        made.start(name, {})
        made.finish(name, {}, 75.0, result)
    made.start("ppo", {})
    return made


def holder(run, one):
    with run.lock_file.open("a") as handle:
        one.write(handle)


def texts(seen, now=NOW, width=80, height=None, **how):
    return [line.plain for line in frame(seen, now, width, height, **how)]


def test_stages_and_their_figures(run):
    with run.locked():
        seen = look(run.root, time.time())
    assert [(one.name, one.state, one.said) for one in seen.stages] == [
        ("problems", "done", "seeds 8"),
        ("sft", "done", "steps 9, loss 0.5"),
        ("prm", "to run", ""),
        ("ppo", "works", ""),
    ]
    assert seen.lives and not seen.done and seen.stages[1].seconds == 75 and 0 <= seen.stages[3].seconds < 60
    assert texts(seen)[0] == "run  works  2 of 4 stages done"
    assert texts(seen)[2] == " ✓ sft          1 min 15 s  steps 9, loss 0.5"


def test_at_work_is_the_stage_begun_last_while_its_process_lives(run):
    with run.locked():
        assert live.at_work(run, STAGES) == "ppo"
        os.utime(run.stage("sft") / "started.json", (time.time() + 9, time.time() + 9))  # it was begun after ppo, and is done
        assert live.at_work(run, STAGES) is None
    os.utime(run.stage("sft") / "started.json", (1, 1))
    holder(run, GONE)
    assert live.at_work(run, STAGES) is None


def test_check_tells_a_stage_at_work_from_one_that_was_broken_off(tmp_path, capsys):
    stages = {"problems": {"seeds": 10}, "sft": {"data": "seeds"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"random": {}}, "stages": stages}))
    begun = RunDir(tmp_path / "run")
    begun.create({})
    begun.start("sft", {})
    for keeper, told in ((Holder.this(), "at work now"), (GONE, "interrupted, to go on")):
        begun.lock_file.unlink(missing_ok=True)
        holder(begun, keeper)
        assert main(["check", str(tmp_path / "c.yaml"), f"run.dir={begun.root}"]) == 0
        assert f"sft          {told}" in capsys.readouterr().out


def test_a_dead_process_of_this_machine_is_noticed_and_one_elsewhere_by_its_silence(run):
    holder(run, GONE)
    seen = look(run.root, time.time())
    assert seen.lives is False and seen.stages[3].state == "stopped" and "its process is gone" in texts(seen)[0]
    holder(run, Holder(GONE.host, os.getpid(), Holder.this().began - 60))  # another process has its number now
    assert look(run.root, time.time()).lives is False
    holder(run, Holder("elsewhere", 1, 1.0))
    seen = look(run.root, time.time())
    assert seen.lives is None and seen.stages[3].state == "works" and "works on elsewhere" in texts(seen)[0]
    seen = look(run.root, time.time() + 660)
    assert "silent for 11 min on elsewhere" in texts(seen)[0]


def test_of_two_unfinished_stages_the_one_begun_last_is_at_work(run):
    run.start("prm", {})
    os.utime(run.root / "ppo" / "started.json", (NOW, NOW))
    with run.locked():
        assert [one.state for one in look(run.root, time.time()).stages] == ["done", "done", "works", "stopped"]


def test_what_a_worker_died_of_is_shown_until_the_next_start(run):
    holder(run, GONE)
    (run.root / "ppo" / "failure.json").write_text(json.dumps({"traceback": "Traceback\n  x\nValueError: no \x1b[31m"}))
    assert (look(run.root, NOW).stages[3].state, look(run.root, NOW).stages[3].said) == ("failed", "ValueError: no \x1b[31m")
    assert r"ValueError: no \x1b[31m" in texts(look(run.root, NOW))[4] and "failed: its process is gone" in texts(look(run.root, NOW))[0]
    os.utime(run.root / "ppo" / "failure.json", (1, 1))
    assert look(run.root, NOW).stages[3].state == "stopped"


def test_time_left_is_at_the_pace_of_this_start(run):
    progress = Progress("ppo", "ppo", done=30, total=50, before=10, began=NOW - 60, time=NOW - 20)
    assert progress.left(NOW) == 20  # 20 units in 40 s, 20 to go, and 20 s ago
    assert Progress("ppo", "ppo", 10, 50, 10, NOW, NOW).left(NOW) is None
    (run.root / live.PROGRESS).write_text(json.dumps(progress.__dict__))
    with run.locked():
        assert any("ppo ━" in line and "30/50, 20 s left" in line for line in texts(look(run.root, NOW)))
    (run.root / live.PROGRESS).write_text(json.dumps(progress.__dict__ | {"stage": "sft"}))  # left by an earlier stage
    assert look(run.root, NOW).progress is None


def test_a_tracker_writes_progress_whole_and_takes_it_away(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(clock)))
    tracker, file = Tracker("sft", tmp_path / "metrics.jsonl"), tmp_path / live.PROGRESS
    with tracker.progress("sft", 10, done=4) as advance:
        assert json.loads(file.read_text()) | {"began": 0, "time": 0} == {
            "stage": "sft", "what": "sft", "done": 4, "total": 10, "before": 4, "began": 0, "time": 0,
        }  # fmt: skip
        advance(3)
        assert json.loads(file.read_text())["done"] == 7
        with tracker.progress("sft: inner", 2) as inner:
            inner(1)
            assert json.loads(file.read_text())["what"] == "sft: inner"
        advance(1)
        assert json.loads(file.read_text())["done"] == 8
    assert list(tmp_path.iterdir()) == []
    with Tracker.null().progress("sft", 3) as advance:
        advance(1)
    assert list(tmp_path.iterdir()) == []


def test_curves_of_the_stage_at_work_and_answers_that_cannot_act(run):
    rows = [{"stage": "sft", "step": 1, "sft/loss": 2.0}]
    rows += [{"stage": "ppo", "step": step, "time": 9.0, "reward/total": step / 10, "optim/lr": 1.0, "ppo/kl": None} for step in (1, 2, 3)]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "ppo", "st')
    answer = Rollout(
        problem_id="a", iteration=3, sample=0, question="How\x1b[2J many?", text="1+1=2\n#### 2\nmore", step_scores=(0.9, 0.2), instruction=0.5,
        answer=0.2, total=0.1, length=9, finished=True,
    )  # fmt: skip
    write_jsonl(run.root / "ppo" / "rollouts.jsonl", [answer, answer, answer.model_copy(update={"problem_id": "b", "question": "x" * 200})])
    with run.locked():
        seen = look(run.root, time.time())
    assert seen.curves_of == "ppo" and seen.curves == {"reward/total": [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]}
    assert [row.problem_id for row in seen.answers] == ["a", "b"]
    shown = texts(seen)
    assert "reward/total             ▁▅█                           0.1 to 0.3" in shown
    assert r"r_I 0.50 x r_A 0.20 = 0.10  How\x1b[2J many?" in shown and "  0.20 #### 2" in shown and "       more" in shown
    assert all(len(line) <= 80 for line in shown) and len(texts(seen, height=5)) == 5
    assert all(line.isascii() or "…" in line for line in texts(seen, plain=True))


def test_an_outcome_models_score_stands_at_the_answer():
    lines = step_lines("1+1=2\n\n#### 2\nmore", (0.75,), delimiter="\n", marker="####")
    assert [line.plain for line in lines] == ["     1+1=2", "0.75 #### 2", "     more"]
    assert [line.plain for line in step_lines("1\n2", (), delimiter="\n", marker="####")] == ["     1", "     2"]


@pytest.mark.parametrize("file", [".lock", live.PROGRESS, "metrics.jsonl", "ppo/rollouts.jsonl", "ppo/failure.json", "ppo/error.txt"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"stage": 1, "step": {}}\n7\n', b"[" * 100_000])
def test_a_damaged_file_shows_less_and_stops_nothing(run, file, damage, capsys):
    (run.root / file).write_bytes(damage)
    assert main(["watch", str(run.root)]) == 0
    assert "2 of 4 stages done" in capsys.readouterr().out


def test_no_run_is_a_message(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert "no run directory" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stages": 3}))
    with pytest.raises(UserError):
        look(tmp_path, NOW)


def test_on_a_terminal_it_goes_on_until_ctrl_c(run):
    process, master = on_terminal("watch", str(run.root), "--every", "0.1", kind="xterm")
    shown = b""
    while shown.count(b"2 of 4 stages done") < 2:
        shown += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # that the other end is closed
        while part := os.read(master, 4096):
            shown += part
    assert process.wait() == 0 and b"Traceback" not in shown
    assert shown.rindex(b"2 of 4 stages done") > shown.rindex(b"\x1b[?1049l")  # the last look stays, outside the alternate screen


def test_sparklines_and_durations():
    assert sparkline([0, 1, 2, 3], 4, "_.-#") == "_.-#" and sparkline([2, 2], 9) == "▁▁" and sparkline([5], 9) == "▁"
    assert sparkline([0, 0, 9, 9], 2) == "▁█"
    assert [duration(one) for one in (3.4, 125, 700, 3900, 200_000)] == ["3 s", "2 min 5 s", "11 min", "1 h 5 min", "2 d 7 h"]


@pytest.mark.slow
def test_a_run_is_watched_from_elsewhere_until_it_is_killed(tmp_path):
    """A real run, seen by another process while it trains, and after SIGKILL."""
    config = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "rlef", "run", str(config), f"run.dir={folder}", "sft.max_steps=5000", "sft.eval_every=5000"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def seen() -> str:
        watching = [sys.executable, "-m", "rlef", "watch", str(folder), "--once"]
        return subprocess.run(watching, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}).stdout

    try:
        deadline = time.monotonic() + 120
        shown = ""
        while time.monotonic() < deadline and "left" not in shown:
            time.sleep(1)
            shown = seen() if (folder / live.PROGRESS).is_file() and (folder / "sft").is_dir() else ""
        assert "run  works  3 of 12 stages done" in shown and "▶ sft" in shown and "/5000" in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    shown = seen()
    assert "stopped: its process is gone" in shown and "■ sft" in shown and "left" not in shown
