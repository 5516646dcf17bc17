"""Does a run that is killed at random moments, and whose newest files are damaged, end with the very bytes of an undisturbed one?

`python scripts/chaos.py --kills 200 --processes 1` runs every stage in a small form, once undisturbed; then again and again, each run
interrupted once or twice in each stage (SIGKILL; every fifth time SIGTERM, at which it must say 75) and gone on with by the same command
until it ends. When in a stage is drawn in seconds of the processor: they pass at a loaded machine's own speed. After some interruptions the
newest checkpoint, the last line of metrics.jsonl or the teacher's journal is cut or has a bit flipped. What must agree: every file that a
stage leaves, its result and its metrics, without times. No call may be sent again whose answer the journal had, and a W&B run goes on as
one. Stopped itself, the script goes on with the next run.

Every run is a fork of this process, which has everything imported, and so are its ranks, in torchrun's place: a kill while Python loads
teaches nothing. The teacher is a server of the script's own; `report` is left out, its page says how long stages took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from reward_models.checkpoints import MANIFEST
from reward_models.ranks import free_port
from rlef import children, prompts
from rlef.rollout.journal import answer_digest
from rlef.run_dir import RunDir, digest, write_json
from rlef.teacher import QUALITIES
from rlef.trackers import wandb_records

MODEL = {"random": {"vocab_size": 512, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "max_positions": 256}}
ROLLOUTS = {"prompts_per_iteration": 4, "samples_per_prompt": 2, "minibatches": 2, "max_tokens": 48}
SAVED = {"batch_size": 4, "save_every": 1}
STAGES = {
    "problems": {"seeds": 60, "held_out": 40},
    "method": {"operations": ["math.up.add_step"], "steps": 2, "candidates": 2, "batch": 4, "development": 8, "fresh": 8},
    "evolve": {"rounds": 2, "per_round": 30},
    "respond": {"count": 16, "samples": 2},
    "sft": {"learning_rate": 0.004, "max_steps": 24, "eval_every": 5, "patience": 2, "batch_size": 16, "save_every": 4},
    "label": {"lists": 8, "list_size": 4, "count": 32, "samples": 1, "max_tokens": 32, "batch_size": 16},
    "irm": SAVED | {"epochs": 1, "references": 8, "micro_batch_size": 2},
    "prm": SAVED | {"epochs": 1, "micro_batch_size": 2},
    "active": {"kind": "evolve", "choose": "feedback", "rounds": 1, "per_round": 8, "samples": 2, "max_tokens": 32, "band": [0.0, 1.0]},
    "ppo": ROLLOUTS | {"iterations": 6, "critic_warmup": 1, "kl_target": 0.5, "average": 0.5, "fresh_every": 3, "save_every": 1},
    "dpo": SAVED | {"prompts": "problems", "count": 16, "samples_per_prompt": 4, "min_margin": 0.0, "max_tokens": 32, "rounds": 2},
    "grpo": ROLLOUTS | {"iterations": 4},
    "rft": SAVED | {"prompts": "problems", "count": 12, "min_reward": 0.0, "samples_per_prompt": 4, "max_tokens": 32},
    "evaluate": {"count": 6, "vote_count": 2, "k": 2, "max_tokens": 32},
}
ASKING = ("method", "evolve", "respond", "label", "active", "ppo")  # stages that read the journal
TWICE = 0.3  # share of a run's stages that are interrupted a second time
ASK_EVERY = 5  # of so many interruptions one is a SIGTERM
BEGINS_S = 0.5  # of processor time, in which a command does not listen to SIGTERM yet
LOOK_S = 0.02
TIMES = ("seconds", "time", "perf", "rss", "memory")  # names that begin or end so say how long, not what
COUNTS = ("teacher",)  # of a result: what this start asked, and what the run has paid for: hangs on what was in flight at a kill
CONCURRENCY, ANSWER_S = 4, 0.01  # of the teacher's server
DAMAGED_JOURNAL = "the journal of the teacher's calls"  # how the run begins to tell of it


@dataclass
class Row:
    """One disturbed run."""

    run: int
    kills: int = 0
    asked: int = 0  # by SIGTERM
    damaged: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # answers that damage took from the journal
    at: Counter[str] = field(default_factory=Counter)  # stage -> interruptions in it
    mistakes: list[str] = field(default_factory=list)


class Runs:
    """Starts `rlef run` on one run directory."""

    def __init__(self, config: Path, log: Path) -> None:
        self.config, self.log = config, log

    def start(self, folder: Path) -> int:
        """The process id of `rlef run`, which works in `folder`."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            children.end_with_parent(signal.SIGKILL)
            with self.log.open("a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            from rlef import cli

            children.wait = ranks_or(children.wait)
            code = cli.main(["run", str(self.config), f"run.dir={folder}"])
        finally:
            sys.stdout.flush()
            os._exit(code)

    def said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")


def ranks_or(wait: Callable[..., int]) -> Callable[..., int]:
    """`children.wait` that in torchrun's place starts the ranks as forks of this process."""

    def forked(command: Sequence[str], environment: Mapping[str, str] | None = None, *, alone: bool = False) -> int:
        world = next((int(word.split("=")[1]) for word in command if word.startswith("--nproc_per_node=")), 0)
        return ranks(command[-1], world) if world else wait(command, environment, alone=alone)

    return forked


def ranks(job: str, world: int) -> int:
    """The first code but 0 that a rank ends with; the others are told to stop, as torchrun does."""
    port = free_port()
    running = set()
    for rank in range(world):
        child = os.fork()
        if not child:
            code = 1
            try:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
                from rlef.processes import worker

                code = worker.main(job)
            finally:
                sys.stdout.flush()
                os._exit(code)
        running.add(child)
    first = 0
    try:
        while running:
            ended, status = os.wait()
            running.discard(ended)
            code = os.waitstatus_to_exitcode(status)
            if code and not first:
                first = code
                tell(running)
    except BaseException:  # told to stop itself
        tell(running)
        for one in running:
            os.waitpid(one, 0)
        raise
    return first


def tell(running: set[int]) -> None:
    for one in running:
        os.kill(one, signal.SIGTERM)


def followed(pid: int, folder: Path, interrupt: Callable[[str, float], bool]) -> int | None:
    """Its exit code (negative: the signal that ended it) once it has ended; None as soon as `interrupt` says so, which is asked with the
    stage at work and the seconds of the processor spent so far."""
    while True:
        began = time.monotonic()
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if interrupt(stage_at_work(folder), spent(pid)):
            return None
        time.sleep(max(LOOK_S, 10 * (time.monotonic() - began)))  # looking must not slow down what it looks at


def spent(session: int) -> float:
    """Seconds of the processor that the processes of a session have had: unlike the clock's they stand still while others have it."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += sum(map(int, fields[11:15]))  # user and system, its own and of children that have ended
    return total / os.sysconf("SC_CLK_TCK")


def whole(runs: Runs, folder: Path) -> dict[str, float]:
    """Run to the end. Returns each stage's seconds of the processor."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}

    def note(stage: str, seconds: float) -> bool:
        first.setdefault(stage, seconds)
        last[stage] = seconds
        return False

    code = followed(runs.start(folder), folder, note)
    if code != 0:
        raise SystemExit(f"an undisturbed run ended with {code}; see {runs.log}")
    return {stage: last[stage] - first[stage] for stage in first}


class Aim:
    """When to interrupt one start of a run: at a random moment of the first stage that is still to be interrupted."""

    def __init__(self, planned: Counter[str], seconds: Mapping[str, float], rng: random.Random) -> None:
        self.planned, self.seconds, self.rng = planned, seconds, rng
        self.stage, self.at = "", math.inf

    def __call__(self, stage: str, spent: float) -> bool:
        if stage != self.stage:
            self.stage, self.at = stage, math.inf
            if self.planned[stage] > 0:
                self.at = spent + self.rng.random() * self.seconds.get(stage, 0.0)
        return spent >= self.at


def disturbed(runs: Runs, folder: Path, requests: Path, row: Row, rng: random.Random, left: int, seconds: Mapping[str, float],
              damage: float) -> None:  # fmt: skip
    """Interrupt and go on until the run ends by itself; after `left` kills it is left alone."""
    planned = Counter({stage: 1 + (rng.random() < TWICE) for stage in STAGES})
    known: set[str] = set()  # calls whose answer the journal has
    backup, since = folder.with_name("journal_before"), None
    read = 0
    while True:
        began = runs.log.stat().st_size if runs.log.is_file() else 0
        aim = Aim(planned if row.kills < left else Counter(), seconds, rng)
        pid = runs.start(folder)
        code = followed(pid, folder, aim)
        if code is None:
            at, early = stage_at_work(folder), spent(pid) < BEGINS_S
            ask = (row.kills + row.asked) % ASK_EVERY == ASK_EVERY - 1
            os.kill(pid, signal.SIGTERM if ask else signal.SIGKILL)
            code = followed(pid, folder, lambda *_: False)
            row.at[at] += 1
            row.asked += ask
            row.kills += not ask
            planned[at] -= 1
            fine = {0, 75} if ask else {0, -signal.SIGKILL}
            if ask and early:
                fine.add(-signal.SIGTERM)
            if code not in fine:
                row.mistakes.append(f"{at}: ended with {code} after {'SIGTERM' if ask else 'SIGKILL'}")
                return
            interrupted = True
        else:
            interrupted = False
        sent, read = sent_since(requests, read)
        if again := known & set(sent):
            row.mistakes.append(f"{len(again)} calls sent again whose answer the journal had")
            return
        if not interrupted and code == 2 and since is not None and DAMAGED_JOURNAL in runs.said(began):
            restore_journal(folder, backup)  # as its user would
            row.damaged["journal, told and put back"] += 1
            since, code = None, None
        elif not interrupted and code != 0:
            row.mistakes.append(f"ended by itself with {code}")
            return
        known = answered(folder)
        if code == 0:
            return
        if interrupted and rng.random() < damage:
            if at in ASKING and known and since is None and rng.random() < 0.5:
                keep_journal(folder, backup)
                row.damaged[damage_journal(folder, rng)] += 1
                left_over, since = answered(folder), runs.log.stat().st_size
                row.lost += len(known - left_over)
                known = left_over
            else:
                row.damaged[rng.choice([damage_checkpoint, damage_metrics])(folder, rng)] += 1


def stage_at_work(folder: Path) -> str:
    return next(
        (name for name in STAGES if (folder / name / "started.json").is_file() and not (folder / name / "manifest.json").is_file()),
        "between",
    )


def sent_since(requests: Path, line: int) -> tuple[list[str], int]:
    """Keys of the calls that the server got, from that line of its log on; and how many lines there are."""
    lines = requests.read_text().split() if requests.is_file() else []
    return lines[line:], len(lines)


def damage_checkpoint(folder: Path, rng: random.Random) -> str:
    """Cut or flip something in the newest checkpoint that counts."""
    found = sorted(folder.rglob(f"checkpoint-*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
    if not found:
        return "nothing there"
    return "checkpoint, " + spoil(rng.choice([file for file in sorted(found[-1].parent.rglob("*")) if file.is_file()]), 0, rng)


def damage_metrics(folder: Path, rng: random.Random) -> str:
    """The same to the last line of the one file that is appended to."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return "metrics, " + spoil(file, sum(map(len, lines[:-1])), rng) if lines else "nothing there"


JOURNAL = ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm")


def damage_journal(folder: Path, rng: random.Random) -> str:
    """The same to the journal's log, where it has one, or to its table."""
    file = rng.choice([folder / name for name in JOURNAL[:2] if (folder / name).is_file()])
    (folder / JOURNAL[2]).unlink(missing_ok=True)  # an index of the log, made anew: the machine was switched off
    return f"{'journal-wal' if file.suffix.endswith('wal') else 'journal'}, {spoil(file, 0, rng)}"


def keep_journal(folder: Path, backup: Path) -> None:
    shutil.rmtree(backup, ignore_errors=True)
    backup.mkdir()
    for name in JOURNAL[:2]:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(folder / name, backup)


def restore_journal(folder: Path, backup: Path) -> None:
    for name in JOURNAL:
        (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(backup / name, folder)


def answered(folder: Path) -> set[str]:
    """Keys of the calls whose answer the journal has as it was written. Asked of a copy: the next start must find the files as they are."""
    with tempfile.TemporaryDirectory() as copy:
        keep_journal(folder, Path(copy) / "of")
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(Path(copy) / "of" / JOURNAL[0])) as database:
            rows = database.execute("SELECT key, text, finish, sha256 FROM answers")
            return {key for key, text, finish, sha256 in rows if sha256 == answer_digest(key, text, finish)}
    return set()


def spoil(file: Path, first: int, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    if len(data) <= first:
        return "empty"
    place = rng.randrange(first, len(data))
    if rng.random() < 0.5:
        file.write_bytes(data[:place])
        return "cut"
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return "flipped"


def differences(whole: Path, other: Path, *, wandb: bool) -> list[str]:
    """What a disturbed run ended with that the undisturbed one did not."""
    found = []
    for name in STAGES:
        one, two = RunDir(whole).manifest(name), RunDir(other).manifest(name)
        if one is None or two is None:
            found.append(f"{name}: not finished")
            continue
        files = sorted(file for file in one.files.keys() | two.files.keys() if one.files.get(file) != two.files.get(file))
        found += [f"{name}/{file}" for file in files]
        if timeless(one.result) != timeless(two.result):
            found.append(f"{name}: result {timeless(one.result)} {timeless(two.result)}")
        left = [folder.name for folder in (other / name).iterdir() if folder.name in ("shards", "checkpoints")]
        found += [f"{name}/{folder} is left" for folder in left]
    if metrics(whole) != metrics(other):
        found.append("metrics.jsonl")
    if wandb:
        found += wandb_differences(other)
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if not key.startswith((*TIMES, *COUNTS)) and not key.endswith(TIMES)}
    return value


def metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage -> its rows in order."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["stage"], []).append(timeless(row))
    return rows


def wandb_differences(folder: Path) -> list[str]:
    """Each stage is one W&B run that holds each of its rows once."""
    ids, found = json.loads((folder / "run.json").read_text())["wandb"], []
    for stage, run_id in ids.items():
        files = list((folder / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
        if len(files) != 1:
            found.append(f"W&B: {len(files)} folders of {stage}")
            continue
        want = [{key: value for key, value in row.items() if isinstance(value, float)} for row in metrics(folder).get(stage, [])]
        have = [{key: value for key, value in timeless(row).items() if key != "global_step"} for row in wandb_records.read(files[0]).rows]
        if [row for row in have if row] != [row for row in want if row]:
            found.append(f"W&B: history of {stage}")
    return found


def serve(address: Path, requests: Path) -> int:
    """A teacher in a process of its own, at the port that `address` holds or will; the key of each call is added to `requests`. Returns its
    process id once it answers."""
    child = os.fork()
    while child:
        with contextlib.suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", int(address.read_text()))):
            return child
        time.sleep(LOOK_S)
    children.end_with_parent(signal.SIGKILL)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with requests.open("a") as log:
                log.write(digest([f"http://{self.headers['Host']}/v1", body]) + "\n")
            time.sleep(ANSWER_S)
            message = {"role": "assistant", "content": reply(body["messages"][-1]["content"], body["seed"])}
            usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
            data = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client was killed

    port = int(address.read_text()) if address.is_file() else 0  # the fingerprints hold it
    try:
        server = Server(("127.0.0.1", port), Handler)
        write_json(address, server.server_port)
        server.serve_forever()
    finally:
        os._exit(1)


def reply(text: str, seed: int) -> str:
    """What the teacher answers, always the same to the same call."""
    rng = random.Random(f"{seed}/{text}")
    if versions := re.findall(r"^Version (\d+):\n(.*)", text, re.MULTILINE):
        return json.dumps({number: dict.fromkeys(QUALITIES, len(question) % 11) for number, question in versions})
    if text.startswith("Judge the instruction"):
        return json.dumps(dict.fromkeys(QUALITIES, len(text) % 11))
    if text.startswith(prompts.JUDGE_STEPS[:30]):
        return str(rng.randint(0, 3))
    if text.startswith(prompts.SAME_PROBLEM[:30]):
        return rng.choice(["No", "No", "Yes"])
    if text.startswith(prompts.METHOD_ANALYSE[:20]):
        return "They repeat what was given."
    if text.startswith(prompts.METHOD_REWRITE[:20]):
        return f"Change the problem in {rng.randint(2, 99)} words and end with a question.\n\nProblem: {{question}}\n\nNew problem:"
    one, two, days = rng.randint(20, 99), rng.randint(2, 9), rng.randint(2, 5)
    if "New problem:" in text:
        kept = text.rpartition("Problem: ")[2].partition("\n")[0] if seed % 2 else ""
        return f"{kept} A shop has {one} pens and sells {two} of them on each of {days} days. How many pens are left?".strip()
    total = sum(map(int, re.findall(r"\d+", text)))
    return f"{total} + 1 = {total + 1}\n{total + 1} - 1 = {total}\n#### {total}"


def warm_up() -> None:
    """Import what the stages import, and no more: nothing here may start a thread or set a state that a fork would carry along."""
    import importlib

    from rlef.pipeline import REGISTRY

    trainers = {"sft": "sft", "rft": "sft", "dpo": "dpo", "grpo": "grpo"}
    importlib.import_module("openai")
    for name, settings in STAGES.items():
        importlib.import_module(REGISTRY[settings.get("kind", name)].function.split(":")[0])
        if name in trainers:
            importlib.import_module("datasets")
            importlib.import_module(f"trl.trainer.{trainers[name]}_trainer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed JSON for the stages that train")
    parser.add_argument("--damage", type=float, default=0.3, help="share of interruptions after which something is damaged")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="STAGE", help="leave others out")
    parser.add_argument("--wandb", choices=("offline", "disabled"), default="offline")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args(arguments)
    for name in [name for name in STAGES if name not in options.stages]:
        del STAGES[name]
    out: Path = options.out.absolute() / "-".join([f"{options.processes}", *([options.deepspeed.stem] if options.deepspeed else [])])
    out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": options.wandb}
    os.environ.pop("WANDB_API_KEY", None)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    requests = out / "requests.txt"
    server = serve(out / "port.json", requests)
    url = f"http://127.0.0.1:{(out / 'port.json').read_text()}/v1"
    teacher = {"kind": "openai", "model": "teacher", "base_url": url, "concurrency": CONCURRENCY, "max_tokens": 64}
    launch = {"device": "cpu", "processes": options.processes}
    if options.deepspeed:
        launch["deepspeed"] = str(options.deepspeed.absolute())
    config = {"model": MODEL, "teacher": teacher, "launch": launch, "stages": STAGES}
    (out / "chaos.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    runs = Runs(out / "chaos.yaml", out / "log.txt")
    from reward_models.quiet import quiet

    quiet()
    warm_up()
    try:
        return compared(options, out, runs, requests)
    finally:
        os.kill(server, signal.SIGKILL)


def compared(options: argparse.Namespace, out: Path, runs: Runs, requests: Path) -> int:
    # 1. Undisturbed, once.
    times, undisturbed = out / "seconds.json", out / "undisturbed"
    if not times.is_file():
        shutil.rmtree(undisturbed, ignore_errors=True)
        write_json(times, whole(runs, undisturbed))
    seconds = json.loads(times.read_text())

    # 2. Disturbed, run after run; the rows of finished ones are kept.
    file = out / f"rows_{options.seed}.json"
    rows = [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []
    while (done := sum(row.kills for row in rows)) < options.kills:
        row = Row(len(rows))
        folder, rng = out / f"disturbed_{row.run}", random.Random(f"{options.seed}/{row.run}")
        shutil.rmtree(folder, ignore_errors=True)
        requests.unlink(missing_ok=True)
        disturbed(runs, folder, requests, row, rng, options.kills - done, seconds, options.damage)
        row.mistakes = row.mistakes or differences(undisturbed, folder, wandb=options.wandb == "offline")
        rows.append(row)
        write_json(file, [vars(one) for one in rows])
        print(shown(row), flush=True)
        if not row.mistakes:
            shutil.rmtree(folder)

    # 3. The sum.
    wrong = [row for row in rows if row.mistakes]
    at = sum((Counter(row.at) for row in rows), Counter())
    damaged = sum((Counter(row.damaged) for row in rows), Counter())
    kills, asked = sum(row.kills for row in rows), sum(row.asked for row in rows)
    print(f"{kills} kills, {asked} times SIGTERM, {len(rows)} runs, {len(wrong)} of which ended otherwise than the undisturbed one")
    print(f"in: {dict(at)}\ndamaged: {dict(damaged)}, {sum(row.lost for row in rows)} answers of the journal with it")
    print(json.dumps({"kills": kills, "sigterm": asked, "runs": len(rows), "wrong": len(wrong), "at": at, "damaged": damaged}))
    return 1 if wrong else 0


def shown(row: Row) -> str:
    at = ", ".join(f"{stage} {count}" for stage, count in row.at.items())
    return f"run {row.run}: {row.kills} kills, {row.asked} SIGTERM ({at}), {'; '.join(row.mistakes) or 'equal'}"


if __name__ == "__main__":
    raise SystemExit(main())
