"""What clients get: the very scores of the models in this process, a clear refusal, or a request to come back later."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from reward_models.cli import main
from reward_models.data import StepColumns
from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel, StepScores, aggregate
from reward_models.serving.batching import BatchLimits

INSTRUCTIONS = ["Ann has 3 pens. How many?", "How many?", "", "naïve — 数学 😀 " * 30, "Ann has 3 pens. How many?"]
QUESTIONS = ["Ann has 3 pens.", "7?", "Ann has 3 pens.", "", "Ann has 3 pens."]
STEPS = [["Ben 3+4=7", "#### 7"], ["naïve — 数学"], [], ["a", "b", "c"], ["Ben 3+4=7"] * 40]  # the last is too long


@pytest.fixture(scope="module")
def server(model_folders, serve):
    from reward_models.serving.models import load

    with serve(partial(load, model_folders["irm"], model_folders["prm"], "cpu")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def offline(model_folders):
    return InstructionRewardModel.load(model_folders["irm"]), ProcessRewardModel.load(model_folders["prm"])


def test_health_names_the_models(server, ask, model_folders):
    from reward_models.serving.models import digest

    code, told, _ = ask(server, "/health")
    assert code == 200 and told["status"] == "ready"
    assert {kind: one["digest"] for kind, one in told["models"].items()} == {kind: digest(folder) for kind, folder in model_folders.items()}
    assert told["models"]["irm"]["digest"] != told["models"]["prm"]["digest"] and told["models"]["prm"]["max_length"] == 96


def test_scores_are_those_of_the_models_in_this_process(server, ask, offline):
    irm, prm = offline
    code, told, _ = ask(server, "/v1/instructions", {"instructions": INSTRUCTIONS})
    assert code == 200 and told["scores"] == pytest.approx(irm.score(INSTRUCTIONS), abs=1e-5)
    rows = [{"question": question, "steps": steps} for question, steps in zip(QUESTIONS, STEPS, strict=True)]
    for how in ("min", "product", "mean", "last"):
        code, told, _ = ask(server, "/v1/solutions", {"solutions": rows, "aggregate": how})
        assert code == 200
        for one, expected in zip(told["results"], prm.score(QUESTIONS, STEPS), strict=True):
            assert one["step_scores"] == pytest.approx(list(expected.scores), abs=1e-5) and one["truncated"] == expected.truncated
            assert one["score"] == (None if expected.truncated else pytest.approx(aggregate(expected.scores, how), abs=1e-5))
    assert told["results"][-1] == {"step_scores": [], "truncated": True, "score": None}
    (alone,) = ask(server, "/v1/solutions", {"solutions": [{"question": "7?", "text": "a;; b;"}], "delimiter": ";"})[1]["results"]
    assert alone["step_scores"] == pytest.approx(list(prm.score(["7?"], [["a", "b"]])[0].scores), abs=1e-5)


def test_concurrent_requests_share_forwards_and_each_gets_its_own(server, ask, metric, offline):
    texts = [f"Ann has {number} pens. How many?" for number in range(64)]
    before = metric(server, 'reward_models_batch_rows_count{model="irm"}'), metric(server, 'reward_models_tokens_total{model="irm"}')
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda text: ask(server, "/v1/instructions", {"instructions": [text]})[1]["scores"], texts))
    assert [score for (score,) in answers] == pytest.approx(offline[0].score(texts), abs=1e-5)
    forwards = metric(server, 'reward_models_batch_rows_count{model="irm"}') - before[0]
    assert forwards < 48
    tokens = metric(server, 'reward_models_tokens_total{model="irm"}') - before[1]
    assert tokens == sum(len(offline[0].tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts)
    assert metric(server, 'reward_models_requests_total{code="200",path="/v1/instructions"}') >= 64
    assert metric(server, "reward_models_queue_rows") == 0


def test_openrlhfs_request(server, ask, offline):
    irm, prm = offline
    prompts = ["Ann has 3 pens.", "7?", "7?"]
    answers = ["Ben 3+4=7\n#### 7", "a\n\nb", ""]
    asked = {
        "query": [p + a + "<|end|>\n<|pad|>" for p, a in zip(prompts, answers, strict=True)],
        "prompts": prompts,
        "labels": ["7", None, 3],
    }
    code, told, _ = ask(server, "/get_reward", asked)
    least = [aggregate(one.scores) for one in prm.score(prompts, [["Ben 3+4=7", "#### 7"], ["a", "b"], []])]
    assert code == 200 and told["scores"] == pytest.approx(least, abs=1e-5) and least[2] == 0.0
    assert told["rewards"] == pytest.approx([a * b for a, b in zip(irm.score(prompts), least, strict=True)], abs=1e-5)
    assert told["extra_logs"]["r_I"] == pytest.approx(irm.score(prompts), abs=1e-5) and told["extra_logs"]["steps"] == [2, 2, 0]
    # With more servers than rows it sends empty lists.
    assert ask(server, "/get_reward", {"query": [], "prompts": [], "labels": []})[1]["rewards"] == []
    for query, told in [(["Ben"], "begin with its prompt"), (["7?" + "a " * 300], "longer than the 96"), (["7?", "7?"], "in prompts")]:
        code, answer, _ = ask(server, "/get_reward", {"query": query, "prompts": ["7?"], "labels": [""]})
        assert code == 422 and told in answer["error"]


def test_a_prompt_is_read_through_the_reward_models_own_template(policy_folder):
    from transformers import AutoTokenizer

    from reward_models.serving.openrlhf import PromptReader

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    assert PromptReader(tokenizer).question("any") == "any"
    tokenizer.chat_template = "{% for m in messages %}<|u|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
    reader = PromptReader(tokenizer)
    assert reader.question("<|u|>7?<|a|>") == "7?" and reader.question("<|u|>7?") == "<|u|>7?" and reader.question("<|a|>") == "<|a|>"
    assert reader.answer("7? six<|end|>", "7?") == " six" and reader.answer("six", "7?") is None
    # As OpenRLHF 0.11 makes them: the prompt's tokens and the answer's, decoded together.
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "7?"}], add_generation_prompt=True, tokenize=False)
    written = tokenizer.encode("a 7\n#### 7", add_special_tokens=False)
    query = tokenizer.decode(
        [*tokenizer.encode(prompt, add_special_tokens=False), *written, tokenizer.eos_token_id], skip_special_tokens=False
    )
    assert reader.question(prompt) == "7?" and reader.answer(query, prompt) == "a 7\n#### 7"


@pytest.mark.parametrize(
    "path,body,code,told",
    [
        ("/v1/instructions", b"{", 422, ""),
        ("/v1/instructions", b"[" * 100_000, 422, ""),
        ("/v1/instructions", b'{"instructions": [' + b"1" * 10_000 + b"]}", 422, ""),
        ("/v1/instructions", b"\xff\xfe", 422, ""),
        ("/v1/instructions", b'{"instructions": ["\\ud800"]}', 422, "instructions.0"),
        ("/v1/instructions", {"instructions": "a"}, 422, "instructions"),
        ("/v1/instructions", {"instructions": ["a", 1]}, 422, "instructions.1"),
        ("/v1/instructions", {"instructions": ["a"], "instruction": 1}, 422, "instruction"),
        ("/v1/instructions", {"instructions": ["1"] * 9}, 422, "at most 8"),
        ("/v1/instructions", {"instructions": ["1", "2" * 101]}, 422, "row 1"),
        ("/v1/instructions", {"instructions": ["1" * 3000]}, 413, "2000 bytes"),
        ("/v1/solutions", {"solutions": [{"question": "a", "steps": ["b"]}]}, 404, "no process"),
        ("/v1/solutions", {"solutions": [{"question": "a"}]}, 422, "steps or text"),
        ("/v1/solutions", {"solutions": [{"question": "a", "steps": ["b"], "text": "b"}]}, 422, "steps or text"),
        ("/v1/solutions", {"solutions": [{"question": "a", "steps": ["b"] * 99}]}, 422, "row 0"),
        ("/v1/solutions", {"solutions": [], "aggregate": "sum"}, 422, "aggregate"),
        ("/v1/instructions/", {}, 404, ""),
        ("/health", {}, 405, ""),
        ("/v1/instructions", {"instructions": ["boom"]}, 500, "RuntimeError"),
    ],
)
def test_mistakes_are_told_and_change_nothing(serve, ask, halving, path, body, code, told):
    from reward_models.serving.app import RequestLimits

    with serve(lambda: {"irm": halving()}, limits=RequestLimits(rows=8, characters=100, body_bytes=2000 if code == 413 else 2**20)) as (
        url,
        _,
    ):
        got, answer, _ = ask(url, path, body)
        assert (got == code or (got, code) == (400, 422)) and told in answer["error"] and len(answer["error"]) < 300
        assert ask(url, "/v1/instructions", {"instructions": ["1"]})[1]["scores"] == [0.5]


def raw(url, *sent, wait=0.0):
    """What the server says to bytes as they are, sent with pauses."""
    host, port = urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in sent:
            connection.sendall(part)
            time.sleep(wait)
        return connection.recv(2**16)


def test_a_body_that_never_ends_or_never_comes(serve, ask, halving, metric):
    from reward_models.serving.app import RequestLimits

    head = b"POST /v1/instructions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serve(lambda: {"irm": halving()}, limits=RequestLimits(body_bytes=1000, body_timeout_s=0.3)) as (url, _):
        assert b" 413 " in raw(url, head + b"Content-Length: 100000000000\r\n\r\n")
        chunk = b"190\r\n" + b"a" * 400 + b"\r\n"
        assert b" 413 " in raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
        assert b" 408 " in raw(url, head + b"Content-Length: 500\r\n\r\n{")
        assert metric(url, 'reward_models_requests_total{code="413",path="/v1/instructions"}') == 2
        assert ask(url, "/v1/instructions", {"instructions": ["1"]})[0] == 200


def test_who_knows_no_token_is_turned_away_before_anything_is_read(serve, ask, halving):
    with serve(lambda: {"irm": halving()}, token="secret") as (url, _):
        body = {"instructions": ["1"]}
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic secret"}, {"Authorization": "Bearer sécret"}):
            code, answer, told = ask(url, "/v1/instructions", body, **{key: value.encode("latin-1") for key, value in headers.items()})
            assert code == 401 and "secret" not in json.dumps(answer) and told["WWW-Authenticate"] == "Bearer"
        assert ask(url, "/metrics")[0] == 401 and ask(url, "/openapi.json")[0] == 401 and ask(url, "/health")[0] == 200
        assert ask(url, "/v1/instructions", body, Authorization="Bearer secret")[1]["scores"] == [0.5]


def test_a_full_queue_asks_to_come_back_and_a_client_that_left_leaves_it(serve, ask, halving, metric):
    model = halving()
    with serve(lambda: {"irm": model}, batch=BatchLimits(wait_s=0.0, queue_rows=4)) as (url, batcher), ThreadPoolExecutor(4) as pool:
        model.gate.clear()
        first = pool.submit(ask, url, "/v1/instructions", {"instructions": ["0"]})
        assert model.inside.wait(10)
        leaving = http.client.HTTPConnection(urlsplit(url).netloc)
        leaving.request("POST", "/v1/instructions", json.dumps({"instructions": ["7"] * 3}), {"Content-Type": "application/json"})
        while batcher.waiting < 3:
            time.sleep(0.005)
        code, answer, headers = ask(url, "/v1/instructions", {"instructions": ["1", "2"]})
        assert code == 503 and "later" in answer["error"] and int(headers["Retry-After"]) >= 1
        assert metric(url, "reward_models_queue_rows") == 3
        leaving.close()
        while metric(url, 'reward_models_requests_total{code="499",path="/v1/instructions"}') < 1:
            time.sleep(0.005)
        model.gate.set()
        assert first.result(10)[1]["scores"] == [0.0]
        assert ask(url, "/v1/instructions", {"instructions": ["1", "2"]})[1]["scores"] == [0.5, 1.0]
        assert model.forwards == [["0"], ["1", "2"]]


def test_steps_are_found_by_the_scoring_thread_and_whoever_asks_meanwhile_is_answered(serve, ask, halving, monkeypatch):
    """A text of millions of steps is seconds of work."""
    from reward_models.serving import models

    inside, may = threading.Event(), threading.Event()

    def slow(text, delimiter):
        inside.set()
        assert may.wait(30)
        return []

    monkeypatch.setattr(models, "split_steps", slow)
    solutions = models.Solutions.__new__(models.Solutions)
    solutions.digest, solutions.max_length = "d", 9
    solutions._model = SimpleNamespace(columns=lambda *_: StepColumns([], 0, []), score_read=lambda read, _: [StepScores(())] * len(read))
    with serve(lambda: {"prm": solutions}) as (url, _), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, "/v1/solutions", {"solutions": [{"question": "q", "text": "a\nb"}]})
        assert inside.wait(10) and ask(url, "/health")[0] == 200 and not answer.done()
        may.set()
        assert answer.result(10)[0] == 200


def test_a_handler_that_is_cancelled_takes_its_rows_along(halving):
    """As at a stop that lasts too long: nobody waits for them."""
    import asyncio

    from reward_models.serving.app import RequestLimits, create_app
    from reward_models.serving.batching import Batcher
    from reward_models.serving.metrics import Metrics

    model, body = halving(), json.dumps({"instructions": ["1"]}).encode()
    batcher = Batcher(lambda: {"irm": model}, BatchLimits(wait_s=0.0))
    app = create_app(batcher, Metrics(), RequestLimits())
    batcher.start()
    while not batcher.models:
        time.sleep(0.001)
    model.gate.clear()
    held = batcher.submit("irm", ["0"])
    assert model.inside.wait(10)
    scope = {"type": "http", "method": "POST", "path": "/v1/instructions", "raw_path": b"", "query_string": b"", "http_version": "1.1"}
    scope |= {
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("h", 1),
        "client": ("c", 1),
        "root_path": "",
    }

    async def cancelled():
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return first.pop() if first else await asyncio.Event().wait()

        async def send(message):
            pass

        asking = asyncio.ensure_future(app(scope, receive, send))
        while not batcher.waiting:
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.wait([asking])

    asyncio.run(cancelled())
    model.gate.set()
    assert held.result(10) == [0.0]
    batcher.close()
    assert model.forwards == [["0"]]


def test_not_ready_before_the_models_are_loaded(serve, ask, halving):
    may = threading.Event()

    def load():
        assert may.wait(10)
        return {"irm": halving()}

    with serve(load, wait=False) as (url, batcher):
        for path, body in [("/health", None), ("/v1/instructions", {"instructions": ["1"]}), ("/get_reward", {"query": [], "prompts": []})]:
            code, answer, _ = ask(url, path, body)
            assert code == 503 and "load" in json.dumps(answer)
        may.set()
        while not batcher.models:
            time.sleep(0.005)
        assert ask(url, "/health")[0] == 200


@pytest.mark.parametrize(
    "words,told",
    [
        ([], "nothing to serve"),
        (["--irm", "nowhere"], "--irm nowhere: no such folder"),
        (["--irm", ".", "--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN: this environment variable is not set"),
        (["--irm", ".", "--max-rows", "9", "--queue", "8"], "--max-rows 9"),
        (["--irm", ".", "--port", "99999"], "cannot listen"),
        (["--irm", ".", "--host", "256.0.0.1"], "cannot listen"),
        (["--irm", ".", "--port", "0"], "no calibration.json"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "fix:" in shown


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest))
    assert main(["serve", "--irm", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "needs uvicorn" in shown and "pip install 'rlef[serve]'" in shown


def test_told_to_stop_before_it_listens_it_stops(model_folders, monkeypatch, capsys):
    import uvicorn

    run = uvicorn.Server.run

    def told(server, sockets):
        os.kill(os.getpid(), signal.SIGTERM)
        late = threading.Timer(5.0, lambda: setattr(server, "should_exit", True))
        late.start()
        run(server, sockets)
        assert late.is_alive(), "the signal was lost"
        late.cancel()

    monkeypatch.setattr(uvicorn.Server, "run", told)
    assert main(["serve", "--irm", model_folders["irm"], "--port", "0"]) == 0


@pytest.mark.slow
def test_told_to_stop_it_answers_what_is_queued(model_folders, ask, offline):
    """And binds to this machine alone, takes its token from the environment, and ends with code 0."""
    command = [sys.executable, "-m", "reward_models", "serve", "--irm", model_folders["irm"], "--port", "0", "--wait-ms", "3000"]
    server = subprocess.Popen(
        [*command, "--token-env", "MY_TOKEN"], stdout=subprocess.PIPE, text=True, env=os.environ | {"MY_TOKEN": "s3cret"}
    )
    try:
        url = server.stdout.readline().split()[2].rstrip(";")
        assert url.startswith("http://127.0.0.1:")
        while ask(url, "/health")[0] != 200:
            time.sleep(0.1)
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(ask, url, "/v1/instructions", {"instructions": [text]}, Authorization="Bearer s3cret")
                for text in INSTRUCTIONS[:4]
            ]
            time.sleep(1.0)
            assert not any(one.done() for one in asked)  # they wait for company
            server.send_signal(signal.SIGTERM)
            scores = [one.result(120)[1]["scores"][0] for one in asked]
        assert scores == pytest.approx(offline[0].score(INSTRUCTIONS[:4]), abs=1e-5)
        assert server.wait(120) == 0 and json.loads(server.stdout.read()) == {"stopped": True}
        with pytest.raises(OSError):
            ask(url, "/health")
    finally:
        server.kill()
        server.wait()
