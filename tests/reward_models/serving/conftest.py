"""A server in this process, of tiny reward models or of one that halves numbers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import torch

from reward_models.config import ProcessModelConfig
from reward_models.instruction import Calibration, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS
from reward_models.serving.batching import Batcher, BatchLimits


@pytest.fixture(scope="session")
def model_folders(policy_folder, tmp_path_factory):
    """Untrained models on a tiny trunk, their heads large enough that scores differ."""
    folders = {}
    for kind, name in (("instruction", "irm"), ("process", "prm")):
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(1)
        model, tokenizer = build(kind, policy_folder, separator="<|step|>" if name == "prm" else None)
        with torch.no_grad():
            model.score.weight.mul_(30)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    save_calibration(Calibration((-0.5, 0.0, 0.5), 1.0, 0.05, 64), folders["irm"])
    (folders["prm"] / SETTINGS).write_text(ProcessModelConfig(max_length=96).model_dump_json())
    return {name: str(folder) for name, folder in folders.items()}


class Halving:
    """An instruction model: r_I is half of the number that a text is. Waits at `gate`, fails at "boom", cannot read "?"."""

    max_length = 99

    def __init__(self, digest="d" * 64):
        self.gate, self.inside, self.forwards, self.digest = threading.Event(), threading.Event(), [], digest
        self.gate.set()

    def read(self, row):
        if row == "?":
            raise ValueError("unreadable")
        return row

    def tokens(self, read):
        return len(read)

    def score(self, read):
        self.inside.set()
        assert self.gate.wait(30)
        if "boom" in read:
            raise RuntimeError("boom")
        self.forwards.append(list(read))
        return [float(text) / 2 for text in read]


@pytest.fixture(scope="session")
def halving():
    return Halving


@pytest.fixture(scope="session")
def serve():
    """serve(load, ...) -> context of (address, batcher): a server on a free port of this machine, its models ready."""

    @contextlib.contextmanager
    def start(load, *, batch=None, limits=None, token=None, wait=True):
        import uvicorn

        from reward_models.serving.app import RequestLimits, create_app
        from reward_models.serving.metrics import Metrics

        metrics = Metrics()
        batcher = Batcher(load, batch or BatchLimits(), metrics.forward)
        app = create_app(batcher, metrics, limits or RequestLimits(), token)
        batcher.start()
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while wait and not batcher.models and batcher.failure is None:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", batcher
        finally:
            server.should_exit = True
            thread.join(20)
            batcher.close()

    return start


@pytest.fixture(scope="session")
def ask():
    """ask(address, path, body) -> (status, parsed answer, headers); `body` as JSON, or bytes as they are."""

    def send(url, path, body=None, **headers):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        is_json = "json" in response.headers.get("Content-Type", "")
        return response.status, json.loads(answer) if is_json else answer.decode(), response.headers

    return send


@pytest.fixture(scope="session")
def metric(ask):
    """metric(address, name) -> the value of that line of /metrics, 0 where it is not there."""

    def read(url, name):
        lines = [line.rsplit(" ", 1) for line in ask(url, "/metrics")[1].splitlines()]
        return next((float(value) for key, value in lines if key == name), 0.0)

    return read
