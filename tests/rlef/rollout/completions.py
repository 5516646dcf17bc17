"""A small server that speaks vLLM's completions, and what changes its weights, and samples from a real model."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import load_file

from rlef.rollout import served
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator


class Completions:
    """Answers from `model`. `faults`: status codes of the first answers. `raw`: log-probabilities before the temperature.

    `asked`: what its weights were changed by. `ignored`: paths that are answered and nothing more; `slow_s`: how long a reload takes.
    """

    def __init__(self, model, pad, faults=(), raw=False, change=lambda choice: None, ignored=(), slow_s=0.0):
        self.faults, self.seen, self.running, self.most = list(faults), [], 0, 0
        self.version, self.asked, self.ignored = "default", [], ignored
        self.model = model
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"weight_version": outer.version} if self.path == "/weight_info" else {"data": [{"id": "the policy"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.startswith("/v1"):
                    outer.asked.append((self.path, body))
                    if self.path == "/collective_rpc":
                        time.sleep(slow_s)
                    return self.reply(200, {"success": True} if self.path in outer.ignored else outer.changed(self.path, body))
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

    def changed(self, path, body):
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            folder = Path(body["kwargs"]["weights_path"])
            stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
            missing, unknown = self.model.load_state_dict(stored, strict=False)
            assert not missing and not unknown  # the tied head is there, too
        return {"success": True}
