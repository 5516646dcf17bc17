"""Does the reward model server hold under load? 64 clients, 5,000 good requests, a client killed every second, bad ones among them.

    python scripts/serving_load.py [--irm DIR --prm DIR] [--clients 64] [--requests 5000] [--kill-every 1.0] [--rows 1 4] [--out runs/serving]

Starts `python -m reward_models serve` on a free port, with the given models or, without them, with two tiny untrained ones (2 layers of 64).
The clients are processes of this script. Good requests ask for r_I, step scores (a few too long to be read) or OpenRLHF's rewards of random
texts; each is sent until it is answered, and its scores are held against those of the models in this process. Every 20th request is
followed by a bad one: no JSON, another shape, too many rows, a body that is too large, stated so or not. A killed client (SIGKILL, in the
middle of its request) is replaced by one that goes on with what its predecessor had no answer to. The server's memory is read from
/metrics every second: its growth is the median of the last quarter over the median of the second. Prints a table, and as its last line
everything as JSON; exit code 1 where the bar is not met.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TOLERANCE = 1e-5
GROWTH = 1.1  # of resident memory, that still counts as flat
KINDS = ("instructions", "solutions", "get_reward")
PATHS = {"instructions": "/v1/instructions", "solutions": "/v1/solutions", "get_reward": "/get_reward"}
NAMES, THINGS = ("Ann", "Ben", "Cleo", "Dan"), ("pens", "apples", "naïve cafés", "数学 books", "😀")
MAX_BODY, MAX_ROWS = 2**20, 256


# ---------------------------------------------------------------------------------------------- what is asked


def question(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)} has {rng.randrange(1000)} {rng.choice(THINGS)}. " + "How many are left? " * rng.randrange(1, 4)


def good(number: int, rows: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """The kind and the body of request `number`."""
    rng = random.Random(number)
    kind, count = rng.choice(KINDS), rng.randint(*rows)
    questions = [question(rng) for _ in range(count)]
    if kind == "instructions":
        return kind, {"instructions": questions}
    long = 0 if kind == "get_reward" or rng.random() > 0.05 else 300  # there a solution without scores is a 422
    steps = [[f"Ben {rng.randrange(99)}+{k}={rng.randrange(99)}" for k in range(rng.randrange(5) + long)] for _ in range(count)]
    if kind == "solutions":
        return kind, {"solutions": [{"question": one, "steps": parts} for one, parts in zip(questions, steps, strict=True)]}
    return kind, {
        "prompts": questions,
        "query": [one + "\n".join(parts) for one, parts in zip(questions, steps, strict=True)],
        "labels": [None] * count,
    }


def bad(number: int) -> tuple[str, bytes, bool]:
    """Path, body, and whether its length is stated."""
    row = {"question": "q", "steps": ["a"]}
    cases = [
        ("/v1/instructions", b'{"instructions": [', True),
        ("/v1/instructions", b"[" * 50_000, True),
        ("/v1/solutions", json.dumps({"solutions": [row | {"steps": "a"}]}).encode(), True),
        ("/v1/solutions", json.dumps({"solutions": [row] * (MAX_ROWS + 1)}).encode(), True),
        ("/get_reward", json.dumps({"query": ["a"], "prompts": ["b"], "labels": []}).encode(), True),
        ("/v1/instructions", b"x" * (MAX_BODY + 1), True),
        ("/v1/instructions", b"x" * (MAX_BODY + 1), False),
        ("/v2/nothing", b"{}", True),
    ]
    return cases[number % len(cases)]


def expected(irm: Any, prm: Any, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[list[Any]]:
    """The scores of each good request from the models in this process."""
    from reward_models.process import aggregate

    texts = [text for kind, body in asked for text in (body["instructions"] if kind == "instructions" else body.get("prompts", ()))]
    solutions = [pair for kind, body in asked for pair in _solutions(kind, body)]
    r_i = iter(irm.score(texts))
    steps = iter(prm.score([one for one, _ in solutions], [parts for _, parts in solutions]))
    out: list[list[Any]] = []
    for kind, body in asked:
        if kind == "instructions":
            out.append([next(r_i) for _ in body["instructions"]])
        elif kind == "solutions":
            out.append([None if (one := next(steps)).truncated else list(one.scores) for _ in body["solutions"]])
        else:
            out.append([next(r_i) * aggregate(next(steps).scores) for _ in body["prompts"]])
    return out


def _solutions(kind: str, body: dict[str, Any]) -> list[tuple[str, list[str]]]:
    if kind == "solutions":
        return [(one["question"], one["steps"]) for one in body["solutions"]]
    if kind == "get_reward":
        texts = [query.removeprefix(prompt) for query, prompt in zip(body["query"], body["prompts"], strict=True)]
        return [(prompt, text.split("\n") if text else []) for prompt, text in zip(body["prompts"], texts, strict=True)]
    return []


def scores_of(kind: str, answer: dict[str, Any]) -> list[Any]:
    if kind == "solutions":
        return [None if one["truncated"] else one["step_scores"] for one in answer["results"]]
    return answer["scores" if kind == "instructions" else "rewards"]


def off_by(got: Any, wanted: Any) -> float:
    """The largest difference of two nested lists of scores; infinite where they are of another shape."""
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        return max((off_by(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
    if isinstance(got, float | int) and isinstance(wanted, float | int):
        return abs(got - wanted)
    return 0.0 if got is None and wanted is None else float("inf")


# ---------------------------------------------------------------------------------------------- clients


def client(url: str, numbers: Sequence[int], rows: Sequence[int], file: str) -> None:
    """Asks until each of `numbers` is answered, and writes a line for each answer; a process of its own, so that it can be killed."""
    with open(file, "a", encoding="utf-8") as out:
        for number in numbers:
            kind, body = good(number, rows)
            began, busy = time.monotonic(), 0
            while (answered := post(url, PATHS[kind], json.dumps(body).encode()))[0] == 503:
                busy += 1
                time.sleep(0.2)
            code, answer = answered
            scores = scores_of(kind, answer) if code == 200 else None
            row = {"number": number, "code": code, "scores": scores, "seconds": time.monotonic() - began, "busy": busy}
            _line(out, row)
            if number % 20 == 0:
                path, data, stated = bad(number // 20)
                _line(out, {"bad": number, "code": post(url, path, data, stated)[0]})


def _line(out: Any, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")
    out.flush()


def post(url: str, path: str, body: bytes, stated: bool = True) -> tuple[int, Any]:
    """Status and parsed answer; (0, the error) where there is none."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    try:
        sent = body if stated else iter([body[start : start + 65536] for start in range(0, len(body), 65536)])
        connection.request("POST", path, sent, {"Content-Type": "application/json"}, encode_chunked=not stated)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, str(error)
    finally:
        connection.close()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines alone: a killed client may have left half of one."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


def load(url: str, options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """All lines of all clients, and how many clients were killed."""
    context = multiprocessing.get_context("fork")
    shares = {place: list(range(place, options.requests, options.clients)) for place in range(options.clients)}
    running: dict[int, Any] = {}
    lives: Counter[int] = Counter()
    rng, killed, kill_at = random.Random(0), 0, time.monotonic() + options.kill_every

    def start(place: int) -> None:
        done = {row["number"] for row in client_lines(folder, place) if "number" in row}
        left = [number for number in shares[place] if number not in done]
        file = folder / f"client_{place}_{lives[place]}.jsonl"  # a new one: the last line of a killed client's may be half written
        lives[place] += 1
        running[place] = context.Process(target=client, args=(url, left, options.rows, str(file)), daemon=True)
        running[place].start()

    for place in shares:
        start(place)
    while running:
        time.sleep(0.02)
        for place in [place for place, process in running.items() if not process.is_alive()]:
            process = running.pop(place)
            if process.exitcode:
                raise SystemExit(f"client {place} ended with code {process.exitcode}")
        if running and time.monotonic() >= kill_at:
            place = rng.choice(sorted(running))
            os.kill(running[place].pid, signal.SIGKILL)
            running[place].join()
            killed, kill_at = killed + 1, kill_at + options.kill_every
            start(place)
    return [row for place in shares for row in client_lines(folder, place)], killed


def client_lines(folder: Path, place: int) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob(f"client_{place}_*.jsonl")) for row in read_lines(file)]


# ---------------------------------------------------------------------------------------------- the server


class Watch(threading.Thread):
    """The server's resident memory, in MiB, second by second."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.mib, self._end = url, [], threading.Event()

    def run(self) -> None:
        while not self._end.wait(1.0):
            if found := metrics(self.url).get("process_resident_memory_bytes"):
                self.mib.append(found / 2**20)

    def growth(self) -> float:
        """Median of the last quarter over that of the second: what loading and the first forwards take has been taken by then."""
        quarter = len(self.mib) // 4
        return statistics.median(self.mib[-quarter:]) / statistics.median(self.mib[quarter : 2 * quarter]) if quarter else 1.0

    def stop(self) -> None:
        self._end.set()
        self.join()


def metrics(url: str) -> dict[str, float]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    except OSError:
        return {}
    finally:
        connection.close()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}


def tiny_models(folder: Path) -> tuple[str, str]:
    """An untrained IRM and PRM on a random policy of 2 layers, their heads large enough that scores differ."""
    import torch

    from reward_models.config import ProcessModelConfig
    from reward_models.instruction import Calibration, save_calibration
    from reward_models.model import build
    from reward_models.process import SETTINGS
    from rlef.config import RandomInit
    from rlef.models import random_policy, save_policy

    spec = RandomInit(vocab_size=400, hidden_size=64, layers=2, heads=2, intermediate_size=96, max_positions=512)
    rng = random.Random(0)
    save_policy(*random_policy(spec, [question(rng) for _ in range(200)], seed=0), folder / "policy")
    for kind, name in (("instruction", "irm"), ("process", "prm")):
        torch.manual_seed(1)
        model, tokenizer = build(kind, folder / "policy", separator="<|step|>" if name == "prm" else None)
        with torch.no_grad():
            model.score.weight.mul_(30)  # pyright: ignore
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_calibration(Calibration((-0.5, 0.0, 0.5), 1.0, 0.05, 256), folder / "irm")
    (folder / "prm" / SETTINGS).write_text(ProcessModelConfig(max_length=512).model_dump_json())
    return str(folder / "irm"), str(folder / "prm")


def start_server(irm: str, prm: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "reward_models", "serve", "--irm", irm, "--prm", prm, "--port", "0"]
    server = subprocess.Popen([*command, "--max-body", str(MAX_BODY), "--max-rows", str(MAX_ROWS)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().split()[2].rstrip(";")
    while post(url, PATHS["instructions"], b'{"instructions": []}')[0] != 200:
        if server.poll() is not None:
            raise SystemExit("the server did not come up")
        time.sleep(0.2)
    return server, url


# ---------------------------------------------------------------------------------------------- the bar


def judged(lines: Sequence[dict[str, Any]], wanted: Sequence[list[Any]]) -> dict[str, Any]:
    """How many good requests were answered, once each, and how far the scores are off; how the bad ones were refused."""
    answers: dict[int, list[dict[str, Any]]] = {}
    for row in lines:
        if "number" in row:
            answers.setdefault(row["number"], []).append(row)
    right = [row for rows in answers.values() for row in rows if row["code"] == 200]
    refused = Counter(str(row["code"]) for row in lines if "bad" in row)
    seconds = sorted(row["seconds"] for row in right)
    return {
        "good": len(wanted),
        "answered_once": sum(len(rows) == 1 and rows[0]["code"] == 200 for rows in answers.values()),
        "most_off": max((off_by(row["scores"], wanted[row["number"]]) for row in right), default=float("inf")),
        "told_to_wait": sum(row["busy"] for row in right),
        "bad": sum(refused.values()),
        "bad_codes": dict(sorted(refused.items())),
        "median_s": statistics.median(seconds) if seconds else None,
        "p99_s": seconds[int(0.99 * (len(seconds) - 1))] if seconds else None,
    }


def met(result: dict[str, Any]) -> bool:
    return (
        result["answered_once"] == result["good"]
        and result["most_off"] <= TOLERANCE
        and all(code.startswith("4") for code in result["bad_codes"])
        and result["memory_growth"] <= GROWTH
        and result["server_code"] == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--irm")
    parser.add_argument("--prm")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--kill-every", type=float, default=1.0, help="seconds")
    parser.add_argument("--rows", type=int, nargs=2, default=(1, 4), metavar=("FEWEST", "MOST"), help="of a request")
    parser.add_argument("--out", type=Path, default=Path("runs/serving"))
    options = parser.parse_args()
    if (options.irm is None) != (options.prm is None):
        parser.error("give both --irm and --prm, or none")
    options.out.mkdir(parents=True, exist_ok=True)
    for file in options.out.glob("client_*.jsonl"):
        file.unlink()

    irm, prm = (options.irm, options.prm) if options.irm else tiny_models(options.out)
    server, url = start_server(irm, prm)
    watch = Watch(url)
    try:
        watch.start()
        began = time.monotonic()
        lines, killed = load(url, options, options.out)
        seconds = time.monotonic() - began
        watch.stop()
        counted = metrics(url)
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
    finally:
        server.kill()
        server.wait()

    from reward_models.instruction import InstructionRewardModel
    from reward_models.process import ProcessRewardModel

    asked = [good(number, options.rows) for number in range(options.requests)]
    result = judged(lines, expected(InstructionRewardModel.load(irm), ProcessRewardModel.load(prm), asked))
    forwards = {kind: counted.get(f'reward_models_batch_rows_count{{model="{kind}"}}', 0.0) for kind in ("irm", "prm")}
    scored = {kind: counted.get(f'reward_models_batch_rows_sum{{model="{kind}"}}', 0.0) for kind in ("irm", "prm")}
    result |= {
        "killed": killed,
        "seconds": round(seconds, 1),
        "requests_per_second": round(options.requests / seconds, 1),
        "rows_a_forward": {kind: round(scored[kind] / max(1.0, forwards[kind]), 2) for kind in forwards},
        "memory_mib": [round(value) for value in (watch.mib[0], max(watch.mib), watch.mib[-1])] if watch.mib else None,
        "memory_growth": round(watch.growth(), 3),
        "server_code": code,
        "load_average": os.getloadavg()[0],
    }
    result["met"] = met(result)
    print(f"| {'measured':22} | |\n|{'-' * 24}|---|")
    for key, value in result.items():
        print(f"| {key:22} | {value:.3g} |" if isinstance(value, float) else f"| {key:22} | {value} |")
    print(json.dumps(result))
    return 0 if result["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
