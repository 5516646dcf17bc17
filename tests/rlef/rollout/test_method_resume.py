"""A search stopped half-way by the cap goes on by its journal: the same command, and no question is asked twice."""

from __future__ import annotations

import json

import yaml

from rlef.cli import main
from rlef.evolution.operations import read_operations
from rlef.records import Problem, read_jsonl

POOR, GOOD = "Change this.\n{question}", "Change this and end with a question.\n{question}"


def answer(body):
    text = body["messages"][0]["content"]
    if text.startswith("Do these two"):
        return "No"
    if text.startswith("With the template"):
        return "They ask nothing."
    if text.startswith("Below are"):
        return f"Template: {GOOD}" if body["seed"] % 2 else "Mend this."
    if "this" not in text:
        return "#### 7"
    story = text.splitlines()[-1]
    return story.replace("How many", "Two break. How many") if "end with a question" in text else "Two of the pens break."


def test_a_search_goes_on_where_the_cap_stopped_it(endpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    server = endpoint(answer=answer)
    questions = [f"A shop has {number} pens and sells 3 of them. How many pens are left?" for number in range(4, 28)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": one, "answer": "1"}) + "\n" for one in questions))
    (tmp_path / "test.jsonl").write_text('{"question": "What is the capital of a land of nine rivers and ten lakes?", "answer": "2"}\n')
    (tmp_path / "poor.yaml").write_text(yaml.safe_dump({"math": {"up.add_step": POOR}}))
    teacher = {"kind": "openai", "model": "m", "base_url": server.url, "max_tokens": 32, "prices": {"prompt": 1.0, "completion": 1.0}}
    settings = {
        "operations": ["math.up.add_step"],
        "operations_file": "poor.yaml",
        "steps": 2,
        "candidates": 2,
        "batch": 4,
        "development": 6,
    }
    config = {
        "run": {"dir": "run"}, "model": {"random": {}}, "tracking": {"wandb": "disabled"},
        "teacher": teacher | {"max_cost_usd": 0.003},
        "stages": {
            "problems": {"source": "jsonl", "path": "rows.jsonl", "held_out_path": "test.jsonl"},
            "method": settings | {"fresh": 10, "max_tokens": 64},
            "evolve": {"rounds": 1, "weights": {"up.add_step": 1}, "per_round": 8},
        },
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["run", "c.yaml"]) == 2 and "max_cost_usd" in capsys.readouterr().err
    begun = len(server.seen)
    assert begun > 4 and not (tmp_path / "run" / "method").exists()
    assert main(["method", "c.yaml", "teacher.max_cost_usd=5"]) == 0
    result = json.loads((tmp_path / "run" / "method" / "manifest.json").read_text())["result"]
    assert (result["failure_rate_before"], result["failure_rate_after"], result["fresh_parents"]) == (1.0, 0.0, True)
    assert result["teacher"]["journal_hits"] >= begun and max(server.whole.values()) == 1 and len(server.seen) > begun
    assert read_operations(tmp_path / "run" / "method" / "operations.yaml")["math"]["up.add_step"] == GOOD

    assert main(["run", "c.yaml", "teacher.max_cost_usd=5"]) == 0
    evolved = list(read_jsonl(tmp_path / "run" / "evolve" / "evolved.jsonl", Problem))
    assert evolved and all("Two break. How many" in one.question for one in evolved)
