"""An OpenAI-compatible server that misbehaves on request and keeps a log of what it did with every attempt."""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FAULTS = ("429", "429 later", "500", "hang", "reset", "cut", "odd", "empty", "refusal")
HANG_S = 2.0


class Endpoint:
    """`script` faults come first, then random ones with probability `faults`. `answer`: the text for a request's body.

    `log`: attempt id -> (outcome, prompt tokens, completion tokens), the outcome being paid (sent out whole, with its usage; also
    "paid, empty"), free (an error status) or lost (nobody can tell what the client got).
    """

    def __init__(
        self, *script, faults=0.0, seconds=(0.0, 0.0), takes_schemas=True, answer=lambda body: f"echo: {body['messages'][-1]['content']}"
    ):
        self.script, self.faults, self.seconds, self.takes_schemas, self.answer = list(script), faults, seconds, takes_schemas, answer
        self.log: dict[str, tuple[str, int, int]] = {}
        self.seen: list[dict] = []
        self.whole: Counter[str] = Counter()  # answers sent out whole, by question and seed
        self.in_flight: list[tuple[float, int]] = []
        self.rng, self.lock = random.Random(0), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    outer.handle(self, body)
                except OSError:
                    self.close_connection = True  # the client is gone

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self.http = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def handle(self, handler, body):
        attempt = handler.headers.get("X-Client-Request-Id", "")
        with self.lock:
            self.seen.append(body)
            self.in_flight.append((time.monotonic(), 1))
            fault = self.script.pop(0) if self.script else self.rng.choice(FAULTS) if self.rng.random() < self.faults else None
            wait = self.rng.uniform(*self.seconds)
        time.sleep(wait)
        key = handler.headers["Authorization"]
        text = self.answer(body)
        ending = "length" if len(text.split()) >= body["max_tokens"] else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ending}
        usage = {"prompt_tokens": len(str(body["messages"]).split()), "completion_tokens": body["max_tokens"]}
        status, headers, content = 200, {}, {"choices": [choice], "usage": usage | {"total_tokens": sum(usage.values())}}
        if not self.takes_schemas and "response_format" in body:
            fault = 400
        if fault == "refusal":
            choice["message"] = {"role": "assistant", "content": None, "refusal": "I would rather not."}
        if fault == "empty":
            content["choices"] = []
        if fault == "odd":
            content = {"object": "list", "data": [1]}
        if fault == "no usage":
            del content["usage"]
        if isinstance(fault, int) or (fault or "").startswith(("4", "5")):
            status, content = int(str(fault)[:3]), {"error": {"message": f"no, {key}"}}
            headers = {"Retry-After": "0.3"} if str(fault).endswith("later") else {}
        outcome = "lost" if fault in ("hang", "reset", "cut", "drip", "odd", 502) else "free" if status != 200 else "paid"
        outcome += ", empty" * (fault == "empty")
        with self.lock:
            self.log[attempt] = (outcome, usage["prompt_tokens"], usage["completion_tokens"])
            self.whole[json.dumps([body["messages"], body["seed"]])] += outcome == "paid"
            self.in_flight.append((time.monotonic(), -1))
        if fault == "hang":
            time.sleep(HANG_S)
        if fault in ("hang", "reset"):
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            return
        data = json.dumps(content).encode()
        length = len(data)
        if fault == "cut":
            data = data[: len(data) // 2]
            length = len(data) if self.rng.random() < 0.5 else length  # JSON that stops, or a connection that does
            handler.close_connection = True
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for part in [data] if fault != "drip" else [data[place : place + 1] for place in range(len(data))]:
            handler.wfile.write(part)
            time.sleep(0.05 * (fault == "drip"))

    def busy(self, concurrency):
        """Share of `concurrency` x time that requests were in flight, from the first to the last."""
        events = sorted(self.in_flight)
        area = running = 0.0
        for (now, change), (then, _) in itertools.pairwise(events):
            running += change
            area += running * (then - now)
        return area / (concurrency * (events[-1][0] - events[0][0]))


@pytest.fixture
def endpoint():
    started: list[Endpoint] = []

    def start(*script, **options):
        started.append(Endpoint(*script, **options))
        return started[-1]

    yield start
    for one in started:
        one.http.shutdown()
        one.http.server_close()
