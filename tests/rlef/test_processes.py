"""The command as a process: killed and started again, stopped by SIGTERM, on two ranks, on two nodes. The stages are small fakes of this
file's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from reward_models.ranks import free_port

DRIVER = """
import dataclasses, sys
from rlef import cli, pipeline
for kind in ("problems", "sft", "report"):
    pipeline.REGISTRY[kind] = dataclasses.replace(pipeline.REGISTRY[kind], function=f"fake_stages:run_{kind}")
sys.exit(cli.main(sys.argv[1:]))
"""
STAGES = """
import contextlib, os, time
from pathlib import Path
from reward_models import stopping
from rlef.errors import UserError
STAGE_VERSION = 1

def run_problems(ctx):
    (ctx.folder / "out.txt").write_text("problems")
    return {}

def run_sft(ctx):
    if Path("mistake").exists() and os.environ.get("RANK", "0") in Path("mistake").read_text():
        raise UserError("the fake is not well", fix="heal it")
    rank, file = os.environ.get("RANK", "0"), ctx.folder / "steps.txt"
    if Path("failure").exists():
        if rank == "1":
            raise ValueError("the fake fell over")
        while not (ctx.folder / "failure.json").exists():
            time.sleep(0.02)
        raise RuntimeError("the other is gone")
    if rank != "0":
        (ctx.folder / f"pid{rank}").write_text(str(os.getpid()))
    done = len(file.read_text().splitlines()) if file.is_file() else 0
    with stopping.deferred() if Path("saves").exists() else contextlib.nullcontext():
        for step in range(done, 6):
            while Path("wait").exists() and step == 3 and not stopping.asked():
                time.sleep(0.02)
            if rank == "0":
                with file.open("a") as handle:
                    handle.write(f"{step}\\n")
                ctx.tracker.log({"sft/loss": 1.0}, step)
            if stopping.asked():
                raise stopping.Stopped
    return {"first": done, "ranks": int(os.environ.get("WORLD_SIZE", "1"))}

def run_report(ctx):
    return {}
"""
CONFIG = {
    "model": {"random": {}},
    "tracking": {"wandb": "disabled"},
    "run": {"dir": "out"},
    "stages": {"problems": {"seeds": 10}, "sft": {"data": "seeds"}, "report": {}},
}


@pytest.fixture
def start(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "fake_stages.py").write_text(STAGES)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    started: list[subprocess.Popen[str]] = []

    def go(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "driver.py", "run", "c.yaml", *words],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()


def wait_until(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def steps(folder: Path) -> list[int]:
    file = folder / "out" / "sft" / "steps.txt"
    return [int(line) for line in file.read_text().splitlines()] if file.is_file() else []


def waiting(folder: Path):
    wait_until(lambda: steps(folder) == [0, 1, 2])


def test_a_kill_leaves_finished_stages_and_the_next_start_goes_on(start, tmp_path):
    (tmp_path / "wait").touch()
    process = start()
    waiting(tmp_path)
    before = (tmp_path / "out" / "problems" / "manifest.json").stat().st_mtime_ns
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "sft" / "manifest.json").exists()
    (tmp_path / "wait").unlink()
    again = start()
    shown, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert "problems: done before" in shown and steps(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "out" / "problems" / "manifest.json").stat().st_mtime_ns == before
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["stages"]["sft"]["result"]["first"] == 3


def test_sigterm_ends_with_75_and_says_how_to_go_on(start, tmp_path):
    (tmp_path / "wait").touch()
    process = start()
    waiting(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "goes on" in errors and "Traceback" not in errors


TWO = [pytest.param((word,), marks=pytest.mark.slow) for word in ("launch.processes=2", "launch.hostfile=hosts")]


@pytest.mark.parametrize("words", [(), *TWO], ids=["one", "torchrun", "deepspeed"])
def test_what_can_save_comes_to_its_next_step_before_it_ends_with_75(start, tmp_path, words):
    for name in ("wait", "saves"):
        (tmp_path / name).touch()
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    process = start(*words)
    waiting(tmp_path)
    if words:
        wait_until((tmp_path / "out" / "sft" / "pid1").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75 and steps(tmp_path) == [0, 1, 2, 3]
    assert errors.strip().splitlines()[-1].startswith("stopped by SIGTERM") and "Traceback" not in errors
    again = start(*words)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and steps(tmp_path) == [0, 1, 2, 3, 4, 5], errors


def test_two_commands_in_one_run_directory_do_not_mix(start, tmp_path):
    (tmp_path / "wait").touch()
    start()
    waiting(tmp_path)
    second = start()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2 and "another rlef command" in errors


def test_a_mistake_in_a_stage_leaves_no_folder_of_it(start, tmp_path):
    (tmp_path / "mistake").write_text("0")
    process = start()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "the fake is not well" in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "sft").exists() and (tmp_path / "out" / "problems" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_command(start, tmp_path, how):
    (tmp_path / "wait").touch()
    process = start("launch.processes=2")
    waiting(tmp_path)
    pid_file = tmp_path / "out" / "sft" / "pid1"
    wait_until(pid_file.exists)
    pid = int(pid_file.read_text())
    assert not ended(pid)
    process.send_signal(how)
    process.wait(timeout=60)
    wait_until(lambda: ended(pid))
    assert process.returncode == (75 if how == signal.SIGTERM else -9)
    (tmp_path / "wait").unlink()
    again = start("launch.processes=2")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    result = json.loads((tmp_path / "out" / "sft" / "manifest.json").read_text())
    assert result["result"] == {"first": 3, "ranks": 2}
    assert sorted(result["files"]) == ["pid1", "steps.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["0 1", "1"])
def test_a_mistake_on_a_rank_is_one_message(start, tmp_path, ranks):
    (tmp_path / "mistake").write_text(ranks)
    (tmp_path / "wait").touch()  # the other rank waits until it is ended
    process = start("launch.processes=2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "error: the fake is not well" in errors
    assert "driver.py" not in errors


@pytest.mark.slow
def test_a_rank_that_dies_shows_its_traceback_first_and_others_a_line(start, tmp_path):
    (tmp_path / "failure").touch()
    process = start("launch.processes=2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors.count("in run_sft") == 1
    assert errors.index("ValueError: the fake fell over") < errors.index("RuntimeError: stage sft: its processes ended with code 1")


def nodes(start, by: str = "torchrun") -> list[subprocess.Popen[str]]:
    """The same command on two nodes of this machine."""
    words = [f"launch.rendezvous=127.0.0.1:{free_port()}", "launch.hostfile=hosts" if by == "deepspeed" else "launch.nodes=2"]
    return [start(*words, f"launch.rank={rank}") for rank in (0, 1)]


@pytest.mark.slow
def test_two_nodes_run_as_one_and_go_on_after_one_was_killed_or_stopped(start, tmp_path):
    for name in ("wait", "saves"):
        (tmp_path / name).touch()
    pid_file = tmp_path / "out" / "sft" / "pid1"

    # 1. One is killed: the other ends, and says so.
    first, second = nodes(start)
    waiting(tmp_path)
    wait_until(pid_file.exists)
    second.kill()
    began = time.monotonic()
    _, errors = first.communicate(timeout=240)
    assert time.monotonic() - began < 30 and first.returncode == 75 and "node 1" in errors and "is lost" in errors
    wait_until(lambda: ended(int(pid_file.read_text())))
    assert steps(tmp_path) == [0, 1, 2]  # nobody could save

    # 2. Started again, one is told to stop: both save and end alike.
    pid_file.unlink()
    first, second = nodes(start)
    wait_until(pid_file.exists)
    second.send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert first.returncode == second.returncode == 75 and "node 1" in errors[0] and "was told to stop" in errors[0]
    assert steps(tmp_path) == [0, 1, 2, 3] and "Traceback" not in errors[0] + errors[1]

    # 3. Started again, they end; the stage before was done once.
    (tmp_path / "wait").unlink()
    first, second = nodes(start)
    shown, errors = zip(*(process.communicate(timeout=240) for process in (first, second)), strict=True)
    assert first.returncode == second.returncode == 0, errors
    assert "problems: done before" in shown[0] and "problems" not in shown[1] and steps(tmp_path) == [0, 1, 2, 3, 4, 5]
    result = json.loads((tmp_path / "out" / "sft" / "manifest.json").read_text())["result"]
    assert result == {"first": 4, "ranks": 2}


@pytest.mark.slow
@pytest.mark.parametrize("what, code, by", [("failure", 1, "torchrun"), ("mistake", 2, "deepspeed")])
def test_what_fails_on_one_node_is_told_on_node_0_and_ends_both_alike(start, tmp_path, what, code, by):
    (tmp_path / what).write_text("1")
    (tmp_path / "wait").touch()
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    first, second = nodes(start, by=by)
    errors = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert first.returncode == second.returncode == code, errors
    if what == "mistake":
        assert "error: the fake is not well" in errors[0] and "Traceback" not in errors[0]
    else:
        assert "node 1" in errors[0] and errors[0].count("in run_sft") == 1 and "ValueError: the fake fell over" in errors[0]
