"""What the scripts compute, from hand-made files and a scripted reward model."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reward_models.process import ProcessRewardModel, StepScores
from rlef.evolution.arithmetic import check_equations
from rlef.records import Lineage, Problem

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))  # where a script finds those beside it


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_evidence_pools_pairs_by_problem(tmp_path):
    evidence = script("evidence")
    runs = []
    for seed in (0, 1):
        run = tmp_path / f"seed_{seed}"
        (run / "evaluate").mkdir(parents=True)
        for place, policy in enumerate(evidence.POLICIES):
            rows = [
                {"problem_id": str(number), "right": number < 4 + place, "majority": False, "prm_vote": number < 5} for number in range(10)
            ]
            order = rows if place % 2 else rows[::-1]  # order must not matter: pairs go by problem
            (run / "evaluate" / f"samples_{policy}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
        for name, result in {
            "irm": {"pair_accuracy": 0.8 + seed / 10, "by_flaw": {"x": 0.5}},
            "prm": {"step_auroc": 0.9, "by_depth": {"1": 0.9}},
        }.items():
            (run / name).mkdir()
            (run / name / "manifest.json").write_text(json.dumps({"result": result}))
        runs.append(run)
    result = evidence.pool_results(runs)
    assert result["pooled"]["ppo_minus_sft"]["mean"] == pytest.approx(0.4) and result["pooled"]["ppo_minus_sft"][
        "per_seed"
    ] == pytest.approx([0.4, 0.4])
    assert result["pooled"]["ppo_minus_rft"]["mean"] == pytest.approx(0.2) and result["pooled"]["prm_vote_minus_majority"]["mean"] == 0.5
    assert result["irm"]["pair_accuracy"] == pytest.approx(0.85)
    readme = tmp_path / "README.md"
    readme.write_text("a <!-- evidence:begin --> old <!-- evidence:end --> z")
    evidence.write_readme(readme, evidence.as_table(runs, result))
    assert "old" not in readme.read_text() and "ppo minus sft" in readme.read_text() and readme.read_text().endswith(" z")


class Reader:
    """Scores a step by its arithmetic, or all alike."""

    def __init__(self, reads):
        self.reads = reads

    def score(self, questions, steps):
        return [
            StepScores(scores=tuple(1.0 if check_equations(step) != 0 or not self.reads else 0.0 for step in row), truncated=False)
            for row in steps
        ]


@pytest.mark.parametrize("reads", [True, False])
def test_the_probe_tells_whether_numbers_are_read(tmp_path, monkeypatch, capsys, reads):
    probe = script("probe_prm")
    assert probe.kind_of("Ann 1+2=3", "Ann 1+2=4") == "result" and probe.kind_of("Ann 1+2=3", "Ann 1+5=3") == "operand"
    assert probe.kind_of("Ann 1+2=3", "Ben 1+2=3") == "name" and probe.kind_of("Ann 1+2=3", "Ann 1-2=3") == "sign"
    for stage in ("prm", "label"):
        (tmp_path / stage).mkdir()
    row = {"problem_id": "1", "labels": [1.0, 1.0, 1.0], "labeller": "hand", "split": "held_out"}
    rows = [
        row | {"question": f"Ann has {a} pens. Ben has 9 more.", "steps": [f"Ben {a}+9={a + 9}", f"Ben {a + 9}-1={a + 8}", f"#### {a + 8}"]}
        for a in range(2, 60)
    ]
    (tmp_path / "label" / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(ProcessRewardModel, "load", lambda folder: Reader(reads))
    monkeypatch.setattr(sys, "argv", ["probe_prm.py", str(tmp_path), "--labels", "gone"])
    with pytest.raises(SystemExit) as end:
        probe.main()
    assert end.value.code == 2 and "--prm and --labels" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["probe_prm.py", str(tmp_path)])
    assert probe.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(one["pairs"] for one in found.values()) > 50 and found["name"]["in_order"] == 0.5
    assert found["result"]["in_order"] == (1.0 if reads else 0.5)


def test_label_agreement_of_a_simulated_completer_is_what_chance_says():
    study = script("label_agreement")

    def found(p, steps, **luck):
        rows = study.table("simulated", list(study.simulated(steps, p, 600, random.Random(0), **luck)), 0.0, p=p)
        return {(row["solutions"], row["N"]): row for row in rows}

    sure = found(1.0, 8)
    assert len(sure) == 2 * len(study.SIZES) and all(row["monte_carlo"] == row["bisection"] == 1.0 for row in sure.values())
    wrong = sure["wrong answer", 4]  # by hand: 7 + .. + 1 steps; and 4+6+7, 4+6+7, 4+6+5, 4+6+5, 4+2+3, 4+2+3, 4+2+1, 4+2+1 over the errors
    assert wrong["n"] == 300 and wrong["monte_carlo_tokens"] == 4 * 28
    assert (
        wrong["bisection_tokens"] == pytest.approx(4 * 12, rel=0.02) and sure["all", 4]["bisection_tokens"] == wrong["bisection_tokens"] / 2
    )
    chance = found(0.5, 8)
    for size in (2, 4):  # Monte Carlo needs one success after each right step but the last; right solutions have 7 such, wrong ones 0 to 7
        hit = 1 - 0.5**size
        expected = 0.5 * hit**7 + 0.5 * sum(hit**error for error in range(8)) / 8
        assert chance["all", size]["monte_carlo"] == pytest.approx(expected, abs=0.05)
        assert chance["all", size]["bisection"] > chance["all", size]["monte_carlo"] + 0.1
    assert chance["all", 16]["monte_carlo"] > 0.99
    lucky = found(1.0, 8, luck=1.0)["wrong answer", 4]  # all beginnings reach the answer: the error seems to be the last step, always
    assert lucky["monte_carlo"] == lucky["bisection"] == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_simulated_search_lowers_what_really_fails_on_problems_it_never_saw(monkeypatch, capsys, seed):
    search = script("auto_evolve")
    monkeypatch.setattr(sys, "argv", ["auto_evolve.py", "--simulated", "--seed", str(seed)])
    assert search.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["fresh_parents"] and found["before"]["ci95"][0] > 0.7 and found["after"]["ci95"][1] < 0.5
    truth = found["truth"]
    assert truth["before"]["failure_rate"] > 0.8 and truth["after"]["failure_rate"] < 0.4
    assert {"copies_example", "not_a_template", "not_better"} <= found["not_kept"].keys()
    quickstart = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    for words, told in ((["c.yaml", "--simulated"], "takes no config"), ([quickstart], "no stage of kind method")):
        monkeypatch.setattr(sys, "argv", ["auto_evolve.py", *words])
        with pytest.raises(SystemExit) as end:
            search.main()
        assert end.value.code == 2 and told in capsys.readouterr().err


class Slow(BaseHTTPRequestHandler):
    """Answers after 50 ms with as many tokens as were asked for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(0.05)
        data = json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode()
        self.send_response(body.get("status", 200))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def test_the_load_test_sends_the_recorded_requests_again_in_their_order():
    study = script("real_endpoint")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    recorder = study.Recorder(server.server_port)
    try:
        calls = [study.Call(float(number), 0.0, json.dumps({"max_tokens": number}).encode(), 0) for number in range(1, 13)]
        four = study.load_test(recorder, calls, 4)
        assert (four.calls, four.tokens) == (12, 78) and 2 < four.in_flight <= 4 and four.idle == 0
        one = study.load_test(recorder, calls, 1)
        assert one.seconds >= 0.6 and four.speed > 1.5 * one.speed and one.speed == 78 / one.seconds
        study.load_test(recorder, calls, 4)
        assert recorder.taken() == [] and study.load(calls[:1] * 2, 1.0).calls == 2
        with pytest.raises(RuntimeError, match="503"):
            study.load_test(recorder, [study.Call(0.0, 0.0, b'{"max_tokens": 1, "status": 503}', 0)], 1)
    finally:
        recorder.close()
        server.shutdown()
        server.server_close()


def test_a_stages_idle_time_counts_against_it():
    study = script("real_endpoint")
    calls = [study.Call(10.0, 12.0, b"", 30), study.Call(11.0, 14.0, b"", 10)]
    whole = study.load(calls, 8.0)
    assert (whole.speed, whole.idle, whole.in_flight) == (5.0, 0.5, 1.25) and study.load(calls).speed == 10.0


def test_seeds_take_turns_and_lineages_are_counted_to_their_seed(tmp_path):
    study = script("real_endpoint")
    for name in ("general", "math"):
        (tmp_path / name).write_text("".join(json.dumps({"question": f"{name} {number}"}) + "\n" for number in range(9)))
    study.write_seeds(tmp_path / "seeds", tmp_path / "general", tmp_path / "math", 4, 0)
    rows = [json.loads(line) for line in (tmp_path / "seeds").read_text().splitlines()]
    assert [row["domain"] for row in rows] == ["general", "math"] * 4 and len({row["question"] for row in rows}) == 8
    assert all(row["question"].startswith(row["domain"]) for row in rows)
    lines = [("a", "seed"), ("b", "a"), ("c", "b"), ("d", "seed")]
    made = [
        Problem(id=own, question=own, lineage=Lineage(parent=parent, root="seed", operation="up.deepen", round=1, teacher="t"))
        for own, parent in lines
    ]
    assert study.lineage_depths(made) == {1: 2, 2: 1, 3: 1}


def test_the_server_and_its_children_end_with_the_run_however_it_ends(tmp_path):
    study = script("real_endpoint")
    vllm = tmp_path / "vllm"
    vllm.write_text(
        f"#!{sys.executable}\n"
        "import subprocess, sys\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Health(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/health' else 404)\n"
        "        self.end_headers()\n"
        f"child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Health).serve_forever()\n"
    )
    vllm.chmod(0o755)
    with pytest.raises(KeyboardInterrupt), study.served(vllm, tmp_path, tmp_path, []):
        child = int((tmp_path / "child").read_text())
        os.kill(child, 0)
        raise KeyboardInterrupt
    time.sleep(0.1)
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # at most a corpse, where nobody reaps orphans
    vllm.write_text("#!/bin/sh\necho no such model\nexit 3\n")
    with pytest.raises(SystemExit, match="no such model"), study.served(vllm, tmp_path, tmp_path, []):
        pass


def test_scores_elsewhere_are_told_apart():
    study = script("elsewhere")
    rows = study.asked(4)
    assert len(rows["irm"]) == len({*rows["irm"]}) == 8 + len(study.ODD) and len(rows["prm"]) == 8 + len(study.ODD)
    assert study.off([0.5, [0.25, 0.5]], [0.5, [0.5, 0.5]]) == 0.25 and study.off([], []) == 0.0
    assert study.off([[0.5]], [[0.5, 0.5]]) == study.off([0.5], [float("nan")]) == study.off([float("nan")], [0.5]) == float("inf")


def test_the_serving_load_is_judged_by_what_was_answered_once_and_right():
    study = script("serving_load")
    assert study.good(7, (1, 4)) == study.good(7, (1, 4)) and {study.good(n, (1, 4))[0] for n in range(30)} == set(study.KINDS)
    assert study.off_by([0.5, [0.25]], [0.5, [0.5]]) == 0.25 and study.off_by([None], [None]) == 0.0
    assert study.off_by([0.5], [0.5, 0.5]) == study.off_by([0.0], [None]) == study.off_by([[]], [0.0]) == float("inf")
    answer = {"code": 200, "scores": [0.5], "seconds": 0.1, "busy": 0}
    lines = [{"number": 0} | answer, {"number": 1} | answer, {"bad": 0, "code": 413}]
    fine = {"memory_growth": 1.0, "server_code": 0}
    assert study.met(study.judged(lines, [[0.5], [0.5]]) | fine)
    assert not study.met(study.judged(lines, [[0.5], [0.6]]) | fine)  # wrong
    assert not study.met(study.judged(lines, [[0.5]] * 3) | fine)  # one is missing
    assert not study.met(study.judged([*lines, lines[0]], [[0.5], [0.5]]) | fine)  # one came twice
    assert not study.met(study.judged([*lines, {"bad": 20, "code": 500}], [[0.5], [0.5]]) | fine)
    assert not study.met(study.judged(lines, [[0.5], [0.5]]) | fine | {"memory_growth": 1.5})


@pytest.mark.slow
def test_the_serving_load_in_small(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "scripts" / "serving_load.py"), "--clients", "4", "--requests", "60", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--kill-every", "0.2"], capture_output=True, text=True, cwd=root, env=os.environ)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["answered_once"] == 60 and result["most_off"] <= 1e-5 and result["bad"] >= 3 and result["server_code"] == 0
