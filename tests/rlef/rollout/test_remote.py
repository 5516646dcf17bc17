"""The endpoint client against a real local server that misbehaves in the usual ways."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rlef.errors import UserError
from rlef.rollout import remote
from rlef.rollout.hf import HFGenerator
from rlef.rollout.remote import HFChat, OpenAIChat


class Server:
    """Answers "echo: <last message>", after the scripted faults are used up."""

    def __init__(self, *faults):
        self.faults, self.seen, self.keys, self.running, self.most = list(faults), [], set(), 0, 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                    outer.seen.append((time.monotonic(), body))
                    outer.keys.add(self.headers["Authorization"])
                    fault = outer.faults.pop(0) if outer.faults else None
                time.sleep(0.03)
                with lock:
                    outer.running -= 1
                if fault == "hang":
                    time.sleep(1.5)
                if fault == "reset":
                    self.connection.close()
                    return
                status, headers, content = (
                    200,
                    {},
                    {
                        "choices": [
                            {
                                "index": 0,
                                "message": {"role": "assistant", "content": f"echo: {body['messages'][-1]['content']}"},
                                "finish_reason": "stop",
                            }
                        ],
                        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
                    },
                )
                if isinstance(fault, int):
                    status, content = fault, {"error": {"message": "no"}}
                if fault == "later":
                    status, headers, content = 429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}}
                if fault == "empty":
                    content["choices"] = []
                data = json.dumps(content).encode() if fault != "cut" else b'{"choices": [{"ind'
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def client(server_or_url, **options):
    url = server_or_url if isinstance(server_or_url, str) else server_or_url.url
    return OpenAIChat(
        **({"model": "m", "base_url": url, "api_key_env": "RLEF_TEST_KEY", "concurrency": 4, "timeout_s": 1.0, "retries": 4} | options)
    )


def ask(chat, *texts):
    return chat.complete([[{"role": "user", "content": text}] for text in texts], temperature=0.5, max_tokens=9, seed=7)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setenv("RLEF_TEST_KEY", "sk-secret")
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: 0.05)


def test_answers_come_in_order_and_concurrency_is_bounded():
    server = Server()
    chat = client(server)
    texts = [str(number) for number in range(12)]
    assert ask(chat, *texts) == [f"echo: {text}" for text in texts]
    assert 2 <= server.most <= 4 and server.keys == {"Bearer sk-secret"}
    assert (chat.account()["prompt_tokens"], chat.account()["completion_tokens"]) == (36, 24)
    assert sorted(body["seed"] for _, body in server.seen) == list(range(7, 19))


@pytest.mark.parametrize("faults", [[500, 503], ["reset"], ["hang"], [429, 429]])
def test_passing_faults_are_retried(faults):
    assert ask(client(Server(*faults)), "hello") == ["echo: hello"]


def test_retry_after_is_obeyed():
    server = Server("later")
    assert ask(client(server), "hello") == ["echo: hello"]
    assert server.seen[1][0] - server.seen[0][0] >= 0.4


def test_a_rejected_request_fails_alone():
    server = Server(400)
    answers = ask(client(server, concurrency=1), "bad", "good")
    assert answers == [None, "echo: good"] and len(server.seen) == 2


@pytest.mark.parametrize("status,word", [(401, "key"), (404, "teacher.model")])
def test_a_wrong_key_or_model_is_a_users_mistake(status, word):
    server = Server(*[status] * 20)
    with pytest.raises(UserError, match=word) as error:
        ask(client(server), "x")
    assert "sk-secret" not in str(error.value) and len(server.seen) == 1


def test_an_endpoint_that_is_down_is_named():
    with pytest.raises(UserError, match="127.0.0.1:9"):
        ask(client("http://127.0.0.1:9/v1", retries=1), "x")


def test_the_model_in_this_process_is_deterministic(tiny):
    model, tokenizer = tiny
    chat = HFChat("tiny", HFGenerator(model, tokenizer.pad_token_id), tokenizer, (tokenizer.eos_token_id,))
    messages = [[{"role": "user", "content": text}] for text in ("Ann has 3.", "Ben has 4 more.")]
    first = chat.complete(messages, temperature=1.0, max_tokens=8, seed=1)
    assert (
        first
        == chat.complete(messages, temperature=1.0, max_tokens=8, seed=1)
        != chat.complete(messages, temperature=1.0, max_tokens=8, seed=2)
    )
    told = chat.answers(messages, temperature=1.0, max_tokens=8, seed=1)
    assert [answer.text for answer in told] == first and {answer.finish for answer in told} == {"length"}
    chat.stops = tuple(range(len(tokenizer)))  # whatever comes first ends it
    assert {answer.finish for answer in chat.answers(messages, temperature=1.0, max_tokens=8, seed=1)} == {"stop"}


def test_the_expected_digit_is_the_mean_under_the_models_own_probabilities(tiny):
    model, tokenizer = tiny
    chat = HFChat("tiny", HFGenerator(model, tokenizer.pad_token_id, batch_size=2), tokenizer, (tokenizer.eos_token_id,))
    asked = [[{"role": "user", "content": text}] for text in ("a", "Ann has 3 pens. Judge it.", "b c")]
    got = chat.expected_digit(asked, '{"n": ')
    for messages, value in zip(asked, got, strict=True):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + '{"n": '
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, -1]
        digits = torch.stack([logits[tokenizer.encode(str(digit), add_special_tokens=False)[-1]] for digit in range(10)]).softmax(0)
        assert value == pytest.approx((digits * torch.arange(10)).sum().item(), abs=1e-4)
    assert len(set(got)) == 3
