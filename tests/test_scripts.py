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
from xml.etree import ElementTree

import pytest

from reward_models.process import ProcessRewardModel, StepScores
from rlef import pipeline
from rlef.evolution.arithmetic import check_equations
from rlef.load_config import load_config, parse_config
from rlef.records import Lineage, Problem

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))  # where a script finds those beside it


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_variants_of_the_evidence_differ_in_what_they_are_named_for(capsys):
    evidence = script("evidence")
    root = Path(__file__).parents[1]
    config = load_config(root / "configs" / "quickstart.yaml", ["ppo.iterations=4"])
    every = evidence.make_parts(config)
    own = {name: part.stages[name] for name, part in every.items() if name in part.stages}
    assert own["ppo"]["iterations"] == 4 and own["ppo"]["kl_coef"] == 0.01 and "reward_mode" not in own["ppo"]
    differs = {
        "ppo_orm": {"irm": "none", "prm": "orm"},
        "ppo_prm": {"irm": "none"},
        "ppo_a": {"reward_mode": "min_terminal"},
        "ppo_b": {"reward_mode": "step_sum"},
    }
    for name, change in differs.items():
        assert own[name] == own["ppo"] | change, name
    assert own["sft_more"]["max_steps"] == 4 * 64 * 8 // 16 and own["sft_more"]["init"] == "sft"
    assert all((own[name]["count"], own[name]["samples_per_prompt"]) == (4 * 64, 8) for name in ("rft", "dpo"))
    assert own["step_dpo"] == own["dpo"] | {"pairs": "steps", "samples_per_prompt": 4, "step_samples": 4}
    assert (own["grpo"]["iterations"], own["grpo"]["samples_per_prompt"], own["grpo"]["learning_rate"]) == (4, 8, own["ppo"]["policy_lr"])
    study = evidence.Study(config, every, Path("nowhere"))
    for name, part in every.items():  # each is a config, and its policy reads what it should
        inputs = pipeline.resolve_all(parse_config(study.stages(name), name))
        if "evaluate" in part.stages:
            assert inputs["evaluate"][f"policy:{name}"] == name
        if "prm" in inputs.get(name, {}):
            wanted = ("orm", None) if name == "ppo_orm" else ("prm", None if name == "ppo_prm" else "irm")
            assert (inputs[name]["prm"], inputs[name].get("irm"), inputs[name]["init"]) == (*wanted, "sft")
    assert pipeline.resolve_all(parse_config(study.stages("sft"), "c"))["evaluate_orm"]["prm"] == "orm"
    for words, told in (
        (["--only", "pppo"], "unknown pppo; there are sft, ppo"),
        (["--set", "ppo.iteration=3"], "did you mean `iterations`"),
    ):
        with pytest.raises(SystemExit) as end:
            evidence.main(["--out", "nowhere", *words])
        assert end.value.code == 2 and told in capsys.readouterr().err and not Path("nowhere").exists()


def test_parts_of_the_evidence_wait_for_what_they_need_and_a_failure_stops_no_other(monkeypatch, tmp_path, capsys):
    evidence = script("evidence")
    needs = {"common": (), "irm": ("common",), "prm": ("common",), "ppo": ("common", "irm", "prm"), "more": ("common",), "unasked": ()}
    parts = {name: evidence.Part({name: {}}, needed) for name, needed in needs.items()}
    made, now, most, threads = [], [], [], {}
    together = threading.Barrier(2)

    def make(study, seed, name, shared):
        now.append(name)
        most.append(len(now))
        assert {(seed, need) for need in needs[name]} <= set(made)
        if name == "common":
            together.wait(60)  # both seeds at once, or BrokenBarrierError
        now.remove(name)
        if (seed, name) == (1, "prm"):
            raise RuntimeError("seed 1 broke")
        made.append((seed, name))
        threads[seed, name] = shared

    monkeypatch.setattr(evidence.Study, "make", make)
    failed = evidence.Study(None, parts, tmp_path).make_all([0, 1], ["ppo", "more"], 3, 6)
    assert failed == ["seed 1 broke", "seed_1.ppo: not made, what it needs is not there"]
    assert sorted(made) == sorted(
        [
            (seed, name)
            for seed in (0, 1)
            for name in ("common", "irm", "prm", "ppo", "more")
            if (seed, name) not in ((1, "prm"), (1, "ppo"))
        ]
    )
    assert max(most) <= 3 and threads[0, "common"] == threads[1, "common"] == 3 and min(threads.values()) >= 2
    assert "seed_1.prm failed" in capsys.readouterr().out


def evidence_run(out, seed, name, right, *, text="a\n#### 1", votes=None, folder="evaluate"):
    """A finished evaluation of 10 problems, half of them of depth 5, of which `right` are solved."""
    rows = [
        {"problem_id": str(number), "depth": 1 + 4 * (number % 2), "right": number in right, "text": text}
        | (votes(number) if votes else {})
        for number in range(10)
    ]
    run = out / f"seed_{seed}.{name}" / folder
    run.mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (run / f"samples_{name}.jsonl").write_text("".join(lines if name == "ppo" else reversed(lines)))  # pairs go by problem, not by place
    (run / "manifest.json").write_text("{}")


def test_the_evidence_is_paired_by_seed_and_problem_and_a_claim_needs_both_intervals(tmp_path):
    tables = script("evidence_tables")
    config = load_config(Path(__file__).parents[1] / "configs" / "quickstart.yaml")

    def scored(best):
        return lambda number: {
            "majority": False,
            "prm_vote": number in best,
            "best": number in best,
            "candidates": [
                {"answer": "1", "correct": True, "score": float(number in best)},
                {"answer": "2", "correct": False, "score": 0.5},
            ],
        }

    for seed in (0, 1, 2):
        evidence_run(tmp_path, seed, "sft", {0, 1, 2}, votes=scored({0, 1, 2, 3, 4, 5}))
        evidence_run(tmp_path, seed, "sft", {0, 1, 2}, votes=scored({0}), folder="evaluate_orm")
        evidence_run(tmp_path, seed, "ppo", set(range(8 + seed % 2)), text="a\n#### 1")
        evidence_run(tmp_path, seed, "ppo_b", {0, 1, 2} if seed else set(range(10)), text="a\nb\n#### 1")
        (tmp_path / f"seed_{seed}.ppo_b" / "metrics.jsonl").write_text(
            "".join(json.dumps({"stage": "ppo_b", "step": step, "rollout/steps": step + seed}) + "\n" for step in (1, 2))
        )
    evidence_run(tmp_path, 1, "sft_seeds", {0, 2})
    found = tables.measured(tmp_path, [0, 1, 2], ["sft", "sft_seeds", "ppo", "ppo_b", "dpo"], config)
    differences, claims = found["differences"], {one["claim"]: one["stands"] for one in found["claims"]}
    assert differences["ppo - sft"]["by_seed"] == pytest.approx([0.5, 0.6, 0.5]) and differences["ppo - sft"]["ci95"][0] > 0.3
    assert differences["same, unseen"]["seeds"] == [1] and differences["same, unseen"]["mean"] == pytest.approx(
        0.2
    )  # of 5 deep ones, number 1
    assert differences["PRM - ORM vote"]["mean"] == 0.5 and differences["PRM - majority"]["mean"] == 0.6
    assert differences["steps B - sft"]["mean"] == 1 and "dpo - sft" not in differences
    assert found["policies"]["ppo"]["by_depth"] == {"1": pytest.approx(13 / 15), "5": 0.8}
    assert found["training_steps"]["ppo_b"] == [2.0, 3.0]
    assert [row["best_of"]["mean"] for row in found["curves"]["PRM"]] == pytest.approx([0.5, 0.6])
    assert claims["PPO (IRM x PRM) gains 8 points on SFT"] and claims["mode B writes more steps than SFT"]
    assert claims["mode F does not (a tenth of a step at most)"]
    one_seed_alone = tables.Claim("", "", 0.0)
    split = tables.over_seeds([[0.5] * 9, [0.0] * 9])  # sure over problems, not over seeds
    assert split["ci95"][0] > 0 and not one_seed_alone.stands(split) and one_seed_alone.stands(tables.over_seeds([[0.5] * 9]))
    assert not tables.Claim("", "", 0.6).stands(tables.over_seeds([[0.5] * 9]))
    table = tables.as_table(found)
    assert "| PPO (IRM x PRM) gains 8 points on SFT | +53.3 |" in table and "ppo_b 2.00 to 3.00" in table
    drawn = tables.figures(found)
    assert {"problems", "seeds", "steps", "vote", "best"} == drawn.keys()
    assert all(ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg" for svg in drawn.values())
    readme = tmp_path / "README.md"
    readme.write_text("a <!-- evidence:begin --> old <!-- evidence:end --> z")
    script("evidence").write_readme(readme, table)
    assert "old" not in readme.read_text() and "gains 8 points" in readme.read_text() and readme.read_text().endswith(" z")


@pytest.mark.slow
def test_the_evidence_in_small_goes_on_where_it_stopped(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "scripts" / "evidence.py"), "--config", str(root / "tests" / "configs" / "tiny.yaml")]
    command += ["--seeds", "0", "1", "--jobs", "2", "--count", "10", "--vote-count", "4", "--out", str(tmp_path / "out")]

    def run(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    first = run("--only", "sft", "ppo")
    assert set(first["policies"]) == {"sft", "ppo"} and first["policies"]["ppo"]["seeds"] == [0, 1]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("manifest.json")}
    assert set(run("--only", "ppo_b")["policies"]) == {"sft", "ppo", "ppo_b"}
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert (
        first["curves"].keys() == {"PRM", "ORM"}
        and (tmp_path / "out" / "table.md").is_file()
        and (tmp_path / "out" / "steps.svg").is_file()
    )


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


SLURM = {
    # Two nodes: srun starts its command once a node, and ends with the greatest code.
    "srun": """while [ "${1#--}" != "$1" ]; do shift; done
most=0
for node in 0 1; do SLURM_NODEID=$node "$@"; code=$?; [ $code -gt $most ] && most=$code; done
exit $most""",
    "scontrol": """echo "$@" >> scontrol.log
[ "$1" = show ] && printf 'gpu07\\ngpu09\\n'""",
    "rlef": """echo "$SLURM_NODEID: $@"; exit $CODE""",
}


@pytest.mark.parametrize("code, before, queued", [(0, "", False), (1, "", False), (75, "", True), (75, "99", True), (75, "100", False)])
def test_a_slurm_job_starts_one_command_a_node_and_is_queued_again_after_75(tmp_path, code, before, queued):
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "gpu[07,09]", "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_CPUS_ON_NODE": "64", "SLURM_GPUS_ON_NODE": "8", "CODE": str(code)} | ({"SLURM_RESTART_COUNT": before} if before else {})
    environment = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPTS / "multinode.slurm"), "c.yaml", "ppo.iterations=3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    words = "run c.yaml ppo.iterations=3 launch.nodes=2 launch.processes=8 launch.rendezvous=gpu07:23456"
    assert done.returncode == code and done.stdout.splitlines()[:2] == [f"0: {words}", f"1: {words}"], done.stderr
    assert (tmp_path / "scontrol.log").read_text().splitlines()[1:] == ["requeue 123456"] * queued
    load_config("configs/quickstart.yaml", words.split()[2:])  # these keys are the schema's


def test_a_machine_without_a_gpu_is_not_accepted_and_two_hosts_need_root(tmp_path):
    """Without torch or root: what both say at once, in a folder of their own."""
    (tmp_path / "python").write_text("#!/usr/bin/env bash\necho 0\n")
    (tmp_path / "id").write_text("#!/usr/bin/env bash\necho 1000\n")
    for name in ("python", "id"):
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    for name, code, told in (("gpu_check", 1, "FAIL  GPU: torch finds none"), ("two_hosts", 0, "skipped: network namespaces need root")):
        command = ["bash", str(SCRIPTS / f"{name}.sh"), str(tmp_path / "logs")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and done.stdout.startswith(told) and len(done.stdout.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_check_of_a_gpu_machine_is_a_line_each_and_one_failure_fails_it(tmp_path, gpus):
    fake = f"""case "$*" in
*device_count*) echo {gpus};;
*doctor*) echo doctor;;
*zero3*) printf 'noise\\n\\nRuntimeError: no memory\\n\\n'; exit 1;;
esac"""
    (tmp_path / "python").write_text(f"#!/usr/bin/env bash\n{fake}\n")
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path), "VLLM": "vllm"}
    done = subprocess.run(["bash", str(SCRIPTS / "gpu_check.sh"), str(tmp_path / "logs")], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[0] == "doctor"
    assert [line for line in lines if line.startswith("FAIL")] == [
        f"FAIL  SFT under ZeRO-3: RuntimeError: no memory; see {tmp_path}/logs/SFT_under_ZeRO_3.log"
    ]
    assert sum(line.startswith("pass  ") for line in lines) == (11 if gpus == 2 else 7)
    assert [line for line in lines if line.startswith("skip")] == (["skip  NCCL, 2 GPUs: there is one"] if gpus == 1 else [])
