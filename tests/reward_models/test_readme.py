"""The README's commands and code, word for word, on a small model, where neither rlef nor what only rlef needs can be imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from reward_models.ranks import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "reward_models" / "README.md").read_text(encoding="utf-8")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SERVERS = ("fastapi", "starlette", "uvicorn", "prometheus_client")
ABSENT = ("rlef", "trl", "openai", "datasketch", "math_verify", "datasets", "wandb", "matplotlib")


def blocks(section, language):
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class Newcomer:
    """Runs code in a folder of its own; the policy stands in for the model of the hub."""

    def __init__(self, folder, policy):
        self.folder, self.policy, self.port = folder, str(policy), "8500"

    def environment(self, *, serving):
        absent = (*ABSENT, *(() if serving else SERVERS))
        hook = self.folder / ("serving" if serving else "alone")
        hook.mkdir(exist_ok=True)
        (hook / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return os.environ | {"PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)]), "PATH": path, "OMP_NUM_THREADS": "1"}

    def said(self, command):
        return command.replace(MODEL, self.policy).replace("8500", self.port)

    def run(self, *command, code=0, serving=False):
        ended = subprocess.run(
            [self.said(word) for word in command], cwd=self.folder, env=self.environment(serving=serving), capture_output=True, text=True
        )
        assert ended.returncode == code, f"{command}\n{ended.stderr[-3000:]}"
        return ended.stdout

    def shell(self, line, **options):
        return self.run("bash", "-c", line, **options)


@pytest.fixture(scope="module")
def newcomer(policy_folder, tmp_path_factory):
    """With the README's rows as files, those to train on with 60 numbers, and both models trained as it says."""
    one = Newcomer(tmp_path_factory.mktemp("newcomer"), policy_folder)
    judged, ranked, asked = blocks("Train", "json")[0].splitlines()
    numbers = [number for number in range(3, 63)]
    for name, row in (("math_shepherd", judged), ("rankings", ranked)):
        rows = [row.replace("has 3 apples", f"has {n} apples").replace('"seed_id": "1"', f'"seed_id": "{n}"') for n in numbers]
        (one.folder / f"{name}.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    (one.folder / "solutions.jsonl").write_text(asked + "\n", encoding="utf-8")
    for line in blocks("Train", "bash")[0].splitlines():
        one.shell(line)
    return one


def test_train_score_and_evaluate(newcomer):
    metrics = json.loads((newcomer.folder / "my_prm" / "metrics.json").read_text())
    assert metrics["train_solutions"] + metrics["held_out_solutions"] == 60 and metrics["held_out_solutions"] > 2
    newcomer.shell(blocks("Score", "bash")[0])
    (scored,) = [json.loads(line) for line in (newcomer.folder / "scored.jsonl").read_text().splitlines()]
    assert len(scored["step_scores"]) == 2 and scored["score"] == min(scored["step_scores"]) and not scored["truncated"]
    printed = newcomer.run(sys.executable, "-c", blocks("Score", "python")[0])
    assert str(tuple(scored["step_scores"])) in printed

    prm, irm = blocks("Evaluate", "bash")[0].splitlines()
    found = json.loads(newcomer.shell(prm).splitlines()[-1])
    assert found["shape"] == "math_shepherd" and found["held_out_solutions"] == metrics["held_out_solutions"]  # not those trained on
    assert (newcomer.folder / "found" / "evaluation.html").is_file()
    reached = json.loads((newcomer.folder / "my_irm" / "metrics.json").read_text())["pair_accuracy"]
    newcomer.shell(irm, code=0 if reached >= 0.9 else 2)


def test_choose(newcomer):
    (newcomer.folder / "completions.jsonl").write_text(blocks("Choose", "json")[0])
    newcomer.shell(blocks("Choose", "bash")[0])
    (chosen,) = [json.loads(line) for line in (newcomer.folder / "chosen.jsonl").read_text().splitlines()]
    assert chosen["best"] == chosen["scores"].index(max(chosen["scores"])) and chosen["majority"] == "7"
    assert chosen["best_answer"] == ["7", "-1", "7"][chosen["best"]] and 0 < chosen["instruction"] < 1


def test_serve(newcomer):
    newcomer.port = str(free_port())
    start, ask = blocks("Serve", "bash")
    (serve,) = [line for line in start.splitlines() if line.startswith("python")]
    newcomer.run("bash", "-c", serve, code=2)  # without its packages: one message
    command = ["bash", "-c", f"exec {serve} --port {newcomer.port}"]
    server = subprocess.Popen(command, cwd=newcomer.folder, env=newcomer.environment(serving=True), stdout=subprocess.PIPE, text=True)
    try:
        assert newcomer.said("http://127.0.0.1:8500") in server.stdout.readline()
        health, instructions, solutions, metrics = ask.splitlines()
        end = time.monotonic() + 120
        while "ready" not in (told := newcomer.shell(health)):
            assert time.monotonic() < end and server.poll() is None, told
            time.sleep(0.2)
        one = json.loads(newcomer.shell(instructions))["scores"]
        parts = json.loads(newcomer.shell(solutions))["results"][0]["step_scores"]
        assert len(one) == 1 and len(parts) == 2
        assert "reward_models_requests_total" in newcomer.shell(metrics)
        printed = newcomer.run(sys.executable, "-c", blocks("Serve", "python")[0]).splitlines()
        assert printed == [str(one), str(tuple(parts))]
        query = {"prompts": ["Ann has 3 apples and eats 1. How many are left?"], "labels": ["9"]}
        query["query"] = [query["prompts"][0] + "3 - 1 = 2\nThe answer is: 2"]
        url = newcomer.said("http://127.0.0.1:8500/get_reward")
        request = urllib.request.Request(url, json.dumps(query).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["rewards"] == pytest.approx([one[0] * min(parts)], abs=1e-6)
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_a_cards_code_gives_the_same_scores(newcomer):
    code = """
import json
from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel
rows = json.load(open("rows.json"))
scores = [list(one.scores) for one in ProcessRewardModel.load("my_prm").score(*zip(*rows["my_prm"]))]
print(json.dumps({"my_prm": scores, "my_irm": InstructionRewardModel.load("my_irm").score(rows["my_irm"])}))
"""
    text = "Ann has 3 apples. How many are left?"
    rows = {"my_prm": [[text, ["a <|step|> b", "", "c\nd"]], [" ", ["7"]]], "my_irm": [text, "many " * 300, ""]}
    (newcomer.folder / "rows.json").write_text(json.dumps(rows))
    wanted = json.loads(newcomer.run(sys.executable, "-c", code))
    for name, asked in rows.items():
        (newcomer.folder / "asked.json").write_text(json.dumps(asked))
        script = str(ROOT / "scripts" / "elsewhere.py")
        newcomer.run(sys.executable, script, "--child", "transformers", name, "asked.json", "answer.json")
        found = json.loads((newcomer.folder / "answer.json").read_text())
        for one, other in zip(wanted[name], found, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
