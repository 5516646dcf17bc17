"""Does a run that is killed at random moments, and whose newest files are damaged, end with the very bytes of an undisturbed one?

`python scripts/chaos.py --kills 200 --processes 1` trains every stage in a small form, once undisturbed; then again and again, each run
killed (SIGKILL; every fifth time it is asked by SIGTERM, and must say 75) and gone on with by the same command until it ends. After some
kills the newest checkpoint or the last line of metrics.jsonl is cut or has a bit flipped. What must agree: every file that a stage leaves,
its result and its metrics, without times. Stopped itself, the script goes on with the next run.

A run on one process is a fork of this one, which has everything imported: a kill while Python loads teaches nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from reward_models.checkpoints import MANIFEST
from rlef.run_dir import RunDir, write_json

MODEL = {"random": {"vocab_size": 512, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "max_positions": 256}}
ROLLOUTS = {"prompts_per_iteration": 4, "samples_per_prompt": 2, "minibatches": 2, "max_tokens": 48}
STAGES = {
    "problems": {"seeds": 60, "held_out": 40},
    "evolve": {"rounds": 2, "per_round": 60},
    "respond": {"count": 40},
    "sft": {"max_steps": 60, "eval_every": 7, "patience": 2, "batch_size": 32, "save_every": 5},
    "label": {"lists": 16, "count": 48, "samples": 1, "max_tokens": 48},
    "irm": {"epochs": 2, "references": 8, "batch_size": 4, "micro_batch_size": 2, "save_every": 2},
    "prm": {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "save_every": 2},
    "ppo": ROLLOUTS | {"iterations": 6, "critic_warmup": 1, "kl_target": 0.5, "average": 0.5, "fresh_every": 3, "save_every": 1},
    "dpo": {"count": 24, "samples_per_prompt": 4, "min_margin": 0.0, "max_tokens": 48, "batch_size": 4, "rounds": 2, "save_every": 1},
    "grpo": ROLLOUTS | {"iterations": 2},
    "rft": {"count": 24, "min_reward": 0.0, "samples_per_prompt": 4, "max_tokens": 48, "batch_size": 4, "save_every": 1},
    "evaluate": {"count": 6, "vote_count": 2, "k": 2, "max_tokens": 48},
}
SHARE = 0.3  # of an undisturbed run's seconds, the longest that a start lives
ASK_EVERY = 5  # of so many interruptions one is a SIGTERM
TIMES = ("seconds", "time", "perf", "rss", "memory")  # names that begin or end so say how long, not what


@dataclass
class Row:
    """One disturbed run."""

    run: int
    kills: int = 0
    asked: int = 0  # by SIGTERM
    damaged: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)  # stage -> interruptions in it
    mistakes: list[str] = field(default_factory=list)


class Runs:
    """Starts `rlef run` on one run directory."""

    def __init__(self, config: Path, processes: int, log: Path) -> None:
        self.config, self.processes, self.log = config, processes, log

    def start(self, folder: Path) -> int:
        """The process id of `rlef run`, which works in `folder`."""
        words = ["run", str(self.config), f"run.dir={folder}", f"launch.processes={self.processes}"]
        with self.log.open("a") as out:
            if self.processes > 1:
                return subprocess.Popen([sys.executable, "-m", "rlef", *words], stdout=out, stderr=out).pid
            sys.stdout.flush()
            child = os.fork()
            if child:
                return child
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = 1
        try:
            from rlef import cli

            code = cli.main(words)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def whole(self, folder: Path) -> float:
        """Run to the end. Returns its seconds."""
        began = time.monotonic()
        code = ended(self.start(folder), None)
        if code != 0:
            raise SystemExit(f"an undisturbed run ended with {code}; see {self.log}")
        return time.monotonic() - began


def ended(pid: int, seconds: float | None) -> int | None:
    """Its exit code (negative: the signal that ended it) once it has ended; None where it has not within `seconds`."""
    until = time.monotonic() + seconds if seconds is not None else None
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(0.01)


def disturbed(runs: Runs, folder: Path, row: Row, rng: random.Random, left: int, longest: float, damage: float) -> None:
    """Kill and go on until the run ends by itself; after `left` kills it is left alone."""
    while True:
        pid = runs.start(folder)
        code = ended(pid, rng.uniform(0, longest) if row.kills < left else None)
        if code is None:
            at = stage_at_work(folder)
            row.at[at] += 1
            ask = (row.kills + row.asked) % ASK_EVERY == ASK_EVERY - 1
            os.kill(pid, signal.SIGTERM if ask else signal.SIGKILL)
            code = ended(pid, None)
            row.asked += ask
            row.kills += not ask
            fine = {0, 75} if ask else {0, -signal.SIGKILL}
            if ask and at == "between":
                fine.add(-signal.SIGTERM)  # the command does not listen yet
            if code not in fine:
                row.mistakes.append(f"ended with {code} after {'SIGTERM' if ask else 'SIGKILL'}")
                return
            if rng.random() < damage:
                done = rng.choice([damage_checkpoint, damage_metrics])(folder, rng)
                row.damaged[done] += 1
        elif code != 0:
            row.mistakes.append(f"ended by itself with {code}")
            return
        if code == 0:
            return


def stage_at_work(folder: Path) -> str:
    unfinished = [name for name in STAGES if (folder / name / "started.json").is_file() and RunDir(folder).manifest(name) is None]
    return unfinished[0] if unfinished else "between"


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
        return {key: timeless(one) for key, one in value.items() if not key.startswith(TIMES) and not key.endswith(TIMES)}
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
        have = [row for row in map(timeless, wandb_history(files[0])) if row]
        if have != [row for row in want if row]:
            found.append(f"W&B: history of {stage}")
    return found


def wandb_history(file: Path) -> list[dict[str, float]]:
    """The numbers of an offline run, by the order in which they were logged."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for frame in frames(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(frame)
        values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        rows.append({key: value for key, value in values.items() if "/" in key and isinstance(value, int | float)})
    return [row for row in rows if row]


def frames(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after W&B's 7 bytes: in blocks of 32 KiB, each part behind its checksum (4), length (2) and kind (1)."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def warm_up() -> None:
    """Import what the stages import, and no more: nothing here may start a thread or set a state that a fork would carry along."""
    import importlib

    from rlef.pipeline import REGISTRY

    trainers = {"sft": "sft", "rft": "sft", "dpo": "dpo", "grpo": "grpo"}
    for name in STAGES:
        importlib.import_module(REGISTRY[name].function.split(":")[0])
        if name in trainers:
            importlib.import_module("datasets")
            importlib.import_module(f"trl.trainer.{trainers[name]}_trainer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--damage", type=float, default=0.3, help="share of interruptions after which something is damaged")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="STAGE", help="leave others out")
    parser.add_argument("--wandb", choices=("offline", "disabled"), default="offline")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args(arguments)
    for name in [name for name in STAGES if name not in options.stages]:
        del STAGES[name]
    out: Path = options.out.absolute() / f"{options.processes}"
    out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": options.wandb}
    os.environ.pop("WANDB_API_KEY", None)
    config = {"model": MODEL, "teacher": {"kind": "symbolic"}, "launch": {"device": "cpu"}, "stages": STAGES}
    (out / "chaos.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    runs = Runs(out / "chaos.yaml", options.processes, out / "log.txt")
    if options.processes == 1:
        from rlef.launch import quiet

        quiet()
        warm_up()

    # 1. Undisturbed, once.
    times, whole = out / "seconds.json", out / "undisturbed"
    if not times.is_file():
        shutil.rmtree(whole, ignore_errors=True)
        write_json(times, runs.whole(whole))
    longest = SHARE * json.loads(times.read_text())

    # 2. Disturbed, run after run; the rows of finished ones are kept.
    file = out / f"rows_{options.seed}.json"
    rows = [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []
    while sum(row.kills for row in rows) < options.kills:
        row = Row(len(rows))
        folder, rng = out / f"disturbed_{row.run}", random.Random(f"{options.seed}/{row.run}")
        shutil.rmtree(folder, ignore_errors=True)
        disturbed(runs, folder, row, rng, options.kills - sum(one.kills for one in rows), longest, options.damage)
        row.mistakes = row.mistakes or differences(whole, folder, wandb=options.wandb == "offline")
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
    print(f"in: {dict(at)}\ndamaged: {dict(damaged)}")
    print(json.dumps({"kills": kills, "sigterm": asked, "runs": len(rows), "wrong": len(wrong), "at": at, "damaged": damaged}))
    return 1 if wrong else 0


def shown(row: Row) -> str:
    at = ", ".join(f"{stage} {count}" for stage, count in row.at.items())
    return f"run {row.run}: {row.kills} kills, {row.asked} SIGTERM ({at}), {'; '.join(row.mistakes) or 'equal'}"


if __name__ == "__main__":
    raise SystemExit(main())
