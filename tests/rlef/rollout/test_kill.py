"""A paid stage killed three times at random moments: what it has, what it asked for again, what it says it paid, against the server's log."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rlef.config import Prices
from rlef.records import Problem, Solution, problem_id, read_jsonl, write_jsonl

KEY = "sk-a-secret-that-no-file-may-hold"
PROBLEMS, SAMPLES, CONCURRENCY, KILLS = 500, 4, 16, 3
IN_FLIGHT = KILLS * CONCURRENCY
PRICES = Prices(prompt=0.5, completion=2.0)


def wait_for(server, requests, process):
    end = time.monotonic() + 300
    while len(server.seen) < requests:
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_three_kills_lose_nothing_and_pay_for_nothing_twice(endpoint, tmp_path):
    server = endpoint(faults=0.2, seconds=(0.0, 0.02), answer=lambda body: f"1+1=2\n#### {len(body['messages'][-1]['content'])}")
    questions = [f"What is 1+1, number {number:04}?" for number in range(PROBLEMS)]
    (tmp_path / "evolved").mkdir()
    write_jsonl(tmp_path / "evolved" / "evolved.jsonl", [Problem(id=problem_id(text), question=text) for text in questions])
    teacher = {"kind": "openai", "model": "m", "base_url": server.url, "concurrency": CONCURRENCY, "timeout_s": 1.5, "max_tokens": 64}
    config = {
        "run": {"dir": "run"}, "model": {"random": {}}, "tracking": {"wandb": "disabled"},
        "teacher": teacher | {"prices": PRICES.model_dump(), "max_cost_usd": 5.0},
        "stages": {"respond": {"prompts": "evolved", "count": PROBLEMS, "samples": SAMPLES}},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = os.environ | {"OPENAI_API_KEY": KEY, "PYTHONPATH": str(Path(__file__).parents[3])}

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "rlef", "run", "c.yaml"],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    rng = random.Random(1)
    for _ in range(KILLS):
        process = start()
        try:
            wait_for(server, len(server.seen) + rng.randint(PROBLEMS // 4, PROBLEMS), process)
            time.sleep(rng.uniform(0.0, 0.05))
        finally:
            process.kill()
            process.communicate()
    last = start()
    shown, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors

    # 1. No row is lost, none is there twice.
    rows = [row.problem_id for row in read_jsonl(tmp_path / "run" / "respond" / "solved.jsonl", Solution)]
    rejected = (tmp_path / "run" / "respond" / "rejected.jsonl").read_text().splitlines()
    rows += [json.loads(line)["problem"]["id"] for line in rejected]
    assert sorted(rows) == sorted(map(problem_id, questions))
    database = sqlite3.connect(tmp_path / "run" / "journal.sqlite")
    assert len(server.whole) == PROBLEMS * SAMPLES == database.execute("SELECT count(*) FROM answers").fetchone()[0]

    # 2. What is in the journal is not sent again; what was in flight at a kill may be.
    attempts = list(database.execute("SELECT id, key, number, state FROM attempts"))
    state = {attempt: state for attempt, _, _, state in attempts}
    answered = {key: number for attempt, key, number, _ in attempts if state[attempt] == "answered" and server.log[attempt][0] == "paid"}
    assert len(answered) == PROBLEMS * SAMPLES and all(number <= answered[key] for _, key, number, _ in attempts)
    assert sum(count - 1 for count in server.whole.values()) <= IN_FLIGHT

    # 3. The account and the server's log are of one mind.
    outcomes = {attempt: outcome.split(",")[0] for attempt, (outcome, *_) in server.log.items()}
    pairs = Counter((outcomes.get(attempt, "never seen"), state[attempt]) for attempt in state)
    assert outcomes.keys() <= state.keys()
    exact = {("paid", "answered"), ("free", "rejected"), ("lost", "sent")}
    cut_off = {("paid", "sent"), ("free", "sent"), ("never seen", "sent")}
    assert pairs.keys() <= exact | cut_off and min(pairs[pair] for pair in exact) > PROBLEMS * SAMPLES // 50
    assert sum(pairs[pair] for pair in cut_off) <= IN_FLIGHT
    account = json.loads((tmp_path / "run" / "respond" / "manifest.json").read_text())["result"]["teacher"]
    bill = [server.log[attempt][1:] for attempt, one in state.items() if one == "answered"]
    assert account["run_paid_calls"] == len(bill) == pairs["paid", "answered"]
    assert account["run_paid_usd"] == pytest.approx(PRICES.usd(*map(sum, zip(*bill, strict=True))))
    assert account["run_possibly_paid_calls"] == sum(count for (_, one), count in pairs.items() if one == "sent")
    assert account["journal_hits"] + account["calls"] >= PROBLEMS * SAMPLES > account["journal_hits"] > 0
    assert re.search(r"respond: teacher  calls \d+  journal_hits \d+", shown)
    print(dict(pairs), f"sent again {sum(count - 1 for count in server.whole.values())}", account)

    # 4. The key, which the server repeats in each of its errors, is nowhere.
    assert KEY not in shown + errors
    assert [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []
