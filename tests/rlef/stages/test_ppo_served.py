"""PPO whose answers are sampled by vLLM: a server that it was given, one that it starts itself, an engine in its own process."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from rlef.config import Config, PpoStage, RolloutSection
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer
from rlef.pipeline import check_data
from rlef.rollout import own_server
from rlef.rollout.own_server import OwnServer
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.stages.rollouts import colocated_options
from rlef.tracking import Tracker
from tests.rlef.rollout.completions import Completions
from tests.rlef.rollout.engine import Engine, modules


def context(folder, inputs, **rollout):
    settings = {"iterations": 3, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_tokens": 12, "critic_warmup": 0}
    stage = PpoStage(**settings, minibatches=2, policy_lr=1e-2, rollout=RolloutSection(**rollout))
    config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": stage.model_dump()}})
    return StageContext("ppo", config, stage, inputs, folder, Tracker("ppo", folder / "metrics.jsonl", quiet=True))


@pytest.fixture
def server(tiny_folder):
    one = Completions(load_policy(tiny_folder), load_tokenizer(tiny_folder).pad_token_id)
    yield one
    one.http.shutdown()
    one.http.server_close()


def test_each_iteration_samples_from_the_weights_that_it_trains(inputs, tmp_path, server):
    folder = tmp_path / "ppo"
    folder.mkdir()
    ppo.run(context(folder, inputs, server=server.url))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/version"] for row in rows] == [1, 2, 3] and server.version == f"3 of {folder}"
    assert all(row["rollout/sync_difference"] < 1e-5 and row["rollout/logprob_gap"] < 1e-4 for row in rows)
    assert {"time/sync", "time/rollout"} <= rows[0].keys()
    assert not (folder / "served").exists() and (folder / "model" / "config.json").is_file()


def test_so_it_does_with_an_engine_in_its_own_process(inputs, tmp_path, monkeypatch):
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = tmp_path / "ppo"
    folder.mkdir()
    ppo.run(context(folder, inputs, colocated=True, options="--gpu-memory-utilization 0.2 --max-model-len 200"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/version"] for row in rows] == [1, 2, 3]
    assert all(row["rollout/sync_difference"] < 1e-5 and row["rollout/logprob_gap"] < 1e-4 for row in rows)
    engine = Engine.made[-1]
    told = (engine.args.gpu_memory_utilization, engine.args.max_num_seqs, engine.args.max_model_len, engine.args.generation_config)
    assert told == ("0.2", "512", 200, "vllm") and engine.did[-2:] == ["generate", "shutdown"]


def test_each_rank_has_an_engine_of_its_own_and_a_users_options_stand_last():
    stage = PpoStage(rollout_batch_size=64, rollout=RolloutSection(colocated=True, options="--gpu-memory-utilization 0.5"))
    one, two = (colocated_options(stage, on_cpu=False, dtype="bfloat16", ranks=ranks) for ranks in (1, 2))
    assert one[-6:] == ["--gpu-memory-utilization", "0.3", "--max-num-seqs", "64", "--gpu-memory-utilization", "0.5"]
    assert two == [*one[:-2], "--distributed-executor-backend", "external_launcher", *one[-2:]]


def test_in_process_rollouts_log_nothing_of_a_sync(inputs, tmp_path):
    folder = tmp_path / "ppo"
    folder.mkdir()
    ppo.run(context(folder, inputs))
    assert not any("sync_difference" in line or "rollout/version" in line for line in (folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("both", [{"server": "http://localhost:8000/v1", "vllm": "vllm"}, {"vllm": "vllm", "colocated": True}])
def test_a_server_or_one_of_its_own_or_an_engine(both):
    with pytest.raises(ValueError, match="give one of"):
        RolloutSection(**both)


SERVES = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
assert os.environ["VLLM_SERVER_DEV_MODE"] == "1" and os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
child = subprocess.Popen(["sleep", "60"])
open(sys.argv[1], "w").write(str(child.pid))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
HTTPServer((sys.argv[-3], int(sys.argv[-1])), Handler).serve_forever()
"""


def test_a_server_of_its_own_ends_with_all_its_children(tmp_path):
    one = OwnServer([sys.executable, "-c", SERVES, str(tmp_path / "pid")], tmp_path / "server.log", "6,7")
    child = int((tmp_path / "pid").read_text())
    assert one.url.startswith("http://127.0.0.1:")
    one.close()
    assert one._process.poll() is not None
    stat, until = Path(f"/proc/{child}/stat"), time.monotonic() + 5
    while stat.exists() and stat.read_text().split(")")[1].split()[0] != "Z":  # dead, if perhaps not yet waited for
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_that_does_not_come_up_shows_the_end_of_its_log(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"did not come up:\nout of memory\n  fix: read .*server.log; it was started with: "):
        OwnServer([sys.executable, "-c", "raise SystemExit('out of memory')"], tmp_path / "server.log")
    with pytest.raises(UserError, match=r"rollout.vllm: no-such-vllm cannot be started"):
        OwnServer(["no-such-vllm", "serve"], tmp_path / "server.log")
    monkeypatch.setattr(own_server, "STARTS_S", 0.1)
    with pytest.raises(UserError, match="did not come up"):
        OwnServer([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "server.log")


def test_a_vllm_that_is_not_installed_is_told_before_the_run(monkeypatch):
    for rollout, told in (
        ({"vllm": "no-such-vllm"}, "rollout.vllm: no-such-vllm is no command here"),
        ({"colocated": True}, "rollout.colocated: vllm is not installed beside rlef"),
    ):
        config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": {"kind": "ppo", "rollout": rollout}}})
        with monkeypatch.context() as patched, pytest.raises(UserError, match=f"stages.ppo.{told}"):
            patched.setattr(importlib.util, "find_spec", lambda name: None)
            check_data(config)
