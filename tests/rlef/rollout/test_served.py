"""The sampler behind a server, against a small one that speaks vLLM's completions and samples from a real model."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rlef.errors import UserError
from rlef.rollout import served
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.rollout.served import TOLERANCE, ServedGenerator, seed_of


class Completions:
    """Answers from `model`. `faults`: status codes of the first answers. `raw`: log-probabilities before the temperature."""

    def __init__(self, model, pad, faults=(), raw=False, change=lambda choice: None):
        self.faults, self.seen, self.running, self.most = list(faults), [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "the policy"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                    outer.seen.append(body)
                    fault = outer.faults.pop(0) if outer.faults else None
                time.sleep(0.01)
                with lock:
                    params = SamplingParams(body["max_tokens"], body["temperature"], tuple(body["stop_token_ids"]))
                    request = SampleRequest(tuple(body["prompt"]), (body["seed"],))
                    (one,) = HFGenerator(model, pad).generate([request], params)
                    logprobs = list(one.logprobs)
                    if raw:
                        logprobs = served.token_logprobs(model, body["prompt"], one.tokens, 1.0)
                    outer.running -= 1
                choice = {"token_ids": list(one.tokens), "logprobs": {"token_logprobs": logprobs}, "finish_reason": "stop"}
                change(choice)
                self.reply(fault or 200, {"choices": [choice]} if fault is None else {"error": {"message": "no"}})

            def reply(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve(tiny, monkeypatch):
    monkeypatch.setattr(served, "FIRST_WAIT_S", 0.01)
    servers = []

    def start(model=None, **options):
        servers.append(Completions(model or tiny[0], tiny[1].pad_token_id, **options))
        return servers[-1]

    yield start
    for one in servers:
        one.http.shutdown()
        one.http.server_close()


def requests(tokenizer, count=6):
    return [SampleRequest(tuple(tokenizer.encode("Ann has 3 pens.")), (0, 0, 7, sample)) for sample in range(count)]


def test_ids_logprobs_and_ends_come_back_in_order_with_the_noise_of_the_key(tiny, serve):
    model, tokenizer = tiny
    server = serve()
    wanted = requests(tokenizer)
    twins = [SampleRequest(one.prompt_ids, (seed_of(one.key),)) for one in wanted]
    here = HFGenerator(model, tokenizer.pad_token_id)
    rows = [set(one.tokens) for one in here.generate(twins, SamplingParams(12, 0.7))]
    stop = min(set.union(*rows) - set.intersection(*rows))  # ends some answers, not all
    params = SamplingParams(12, 0.7, (stop,))
    done: list[int] = []
    found = ServedGenerator(server.url, "runs/a/sft/model", concurrency=3).generate(wanted, params, done.append)
    expected = here.generate(twins, params)
    assert [one.tokens for one in found] == [one.tokens for one in expected] and len({one.tokens for one in found}) > 1
    assert [one.finished for one in found] == [one.finished for one in expected] and {one.finished for one in found} == {True, False}
    assert all(one.logprobs == pytest.approx(other.logprobs, abs=1e-4) for one, other in zip(found, expected, strict=True))
    assert sum(done) == len(wanted) and 2 <= server.most <= 3
    assert {body["model"] for body in server.seen} == {"the policy"} and len({body["seed"] for body in server.seen}) == len(wanted)
    # Whatever a generation_config may set is set here, and the server's own EOS ends nothing.
    plain = {"n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert all(body | plain | {"ignore_eos": True, "return_token_ids": True} == body for body in server.seen)


def test_seeds_hang_on_the_key_alone_and_fit_63_bits():
    keys = [(0, 0, number, sample) for number in range(50) for sample in range(50)]
    seeds = {seed_of(key) for key in keys}
    assert len(seeds) == len(keys) and min(seeds) >= 0 and 2**62 < max(seeds) < 2**63 and seed_of([0, 0, 1, 2]) == seed_of((0, 0, 1, 2))


def test_the_same_weights_pass_the_probe_and_others_do_not(tiny, serve):
    model, tokenizer = tiny
    prompt = tokenizer.encode("Ann has 3 pens.")
    assert ServedGenerator(serve().url, "here").check(model, prompt) < 1e-4
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    with pytest.raises(UserError, match=r"not sample from this policy.*\n.*vllm serve runs/a/sft/model --generation-config vllm"):
        ServedGenerator(serve(other).url, "runs/a/sft/model").check(model, prompt)


def test_the_probe_finds_untempered_logprobs_and_a_cut_off_tail(tiny, serve):
    model, tokenizer = tiny
    prompt = tokenizer.encode("Ann has 3 pens.")

    def renormalised(choice):  # as where a nucleus of 0.9 is sampled from
        choice["logprobs"]["token_logprobs"] = [value + 0.105 for value in choice["logprobs"]["token_logprobs"]]

    def lost(choice):
        choice["logprobs"]["token_logprobs"][3] = float("nan")

    for server in (serve(raw=True), serve(change=renormalised), serve(change=lost)):
        with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
            ServedGenerator(server.url, "here").check(model, prompt)
    assert TOLERANCE < 0.105


def test_passing_faults_are_tried_again_and_lasting_ones_named(tiny, serve):
    params = SamplingParams(3, 1.0)
    wanted = requests(tiny[1], count=1)
    server = serve(faults=[503, 429])
    assert len(ServedGenerator(server.url, "here").generate(wanted, params)) == 1 and len(server.seen) == 3
    server = serve(faults=[500] * 9)
    with pytest.raises(UserError, match="no answer after 3 tries: 500"):
        ServedGenerator(server.url, "here", retries=2).generate(wanted, params)
    server = serve(faults=[400] * 9)
    with pytest.raises(UserError, match="rejects what it is asked"):
        ServedGenerator(server.url, "here", concurrency=1).generate(requests(tiny[1]), params)
    assert len(server.seen) <= 2  # the others are not even sent
    with pytest.raises(UserError, match="127.0.0.1:9"):
        ServedGenerator("http://127.0.0.1:9/v1", "here", retries=1)


def test_a_server_without_token_ids_is_refused(tiny, serve):
    for change in (
        lambda choice: choice.pop("token_ids"),
        lambda choice: choice.update(logprobs=None),
        lambda choice: choice["token_ids"].pop(),
    ):
        with pytest.raises(UserError, match="token"):
            ServedGenerator(serve(change=change).url, "here").generate(requests(tiny[1], 1), SamplingParams(3, 1.0))


def test_weights_cannot_be_pushed(tiny, serve):
    with pytest.raises(UserError, match="no weights can be pushed"):
        ServedGenerator(serve().url, "here").sync_weights(tiny[0].named_parameters())
