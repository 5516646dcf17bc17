"""A run over general, code and math instructions, answered by an endpoint: what is asked, what is kept, what is trained on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rlef import prompts
from rlef.records import Eliminated, Problem, Solution, read_jsonl

OUTPUT = "A first paragraph.\n\n  An indented line."
PROGRAM = "def f(x):\n    return x\n\nIt gives back what it gets."
RESPONSES = {  # by the last word of a general or code instruction
    "whole": OUTPUT,
    "cut": "word " * 40,
    "refused": "I'm sorry, but I can't help with that.",
    "repeated": None,
    "empty": "",
}
RULES = {"cut": "cut_off", "refused": "refusal", "repeated": "repeats_question", "empty": "no_answer"}


def asks(text, domain):
    """The question of a prompt that asks for a response in `domain`, else None."""
    before, after = prompts.RESPOND[domain].replace("{marker}", "####").split("{question}")
    return text.removeprefix(before).removesuffix(after) if text.startswith(before) else None


def answer(body):
    text = body["messages"][-1]["content"]
    if body["max_tokens"] == 4:
        return "no"
    if (question := asks(text, "math")) is not None:
        return "6*9=54\n#### 54"
    for domain in ("general", "code"):
        if (question := asks(text, domain)) is not None:
            kind = question.split()[-1].strip(".")
            return question if kind == "repeated" else PROGRAM if domain == "code" else RESPONSES[kind]
    digest = hashlib.sha256(text.encode()).hexdigest()
    names = " ".join(digest[place : place + 5] for place in range(0, 40, 5))
    if "Problem:" in text or "Example: Tram" in text:
        return f"The lines {names} have 6 cars of 9 seats each. How many seats are there?"
    kind = list(RESPONSES)[sum(map(ord, text)) % len(RESPONSES)]
    return f"Write a program about {names}." if "Task:" in text else f"Tell us about {names} until it is {kind}."


SEEDS = {
    "general": [{"instruction": f"Tell the story of the year {year}.", "input": "", "output": OUTPUT} for year in range(1900, 1940)],
    "code": [{"instruction": f"Program the game number {number}.", "output": PROGRAM, "domain": "code"} for number in range(10)],
    "math": [{"question": f"Tram {n} has {n} seats and 2 more. How many?", "answer": f"{n}+2={n + 2}\n#### {n + 2}"} for n in range(10)],
}


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("general",), ("general", "code", "math")])
def test_a_run_over_instructions_ends_with_a_model_trained_on_whole_texts(endpoint, tmp_path, domains):
    server = endpoint(answer=answer)
    rows = [row for domain in domains for row in SEEDS[domain]]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"instruction": "Sing a song.", "output": OUTPUT}) + "\n")
    config = {
        "run": {"dir": "run"}, "tracking": {"wandb": "disabled"}, "launch": {"device": "cpu"},
        "model": {"random": {"vocab_size": 400, "hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 96}},
        "teacher": {"kind": "openai", "model": "m", "base_url": server.url, "max_tokens": 40},
        "stages": {
            "problems": {"source": "jsonl", "path": "seeds.jsonl", "held_out_path": "test.jsonl"},
            "evolve": {"rounds": 1},
            "respond": {"samples": 2, "count": 1000},
            "sft": {"max_steps": 2, "eval_every": 1, "batch_size": 4, "micro_batch_size": 4},
        },
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-m", "rlef", "run", "c.yaml"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    run = tmp_path / "run"
    evolved = {row.id: row for row in read_jsonl(run / "evolve" / "evolved.jsonl", Problem)}
    solved = read_jsonl(run / "respond" / "solved.jsonl", Solution)
    rejected = read_jsonl(run / "respond" / "rejected.jsonl", Eliminated)
    result = {stage: json.loads((run / stage / "manifest.json").read_text())["result"] for stage in ("respond", "sft")}

    # 1. Each is asked in the words of its domain: math `samples` times, the others once.
    counts = Counter(row.domain for row in evolved.values())
    asked = Counter(domain for body in server.seen for domain in prompts.RESPOND if asks(body["messages"][-1]["content"], domain))
    assert counts.keys() == set(domains) and asked == Counter({domain: n * (2 if domain == "math" else 1) for domain, n in counts.items()})
    assert result["respond"]["asked_once"] == sum(n for domain, n in counts.items() if domain != "math")

    # 2. Each is kept whole, or set aside with its rule.
    assert sorted([row.problem_id for row in solved] + [row.problem.id for row in rejected]) == sorted(evolved)
    assert {row.rule for row in rejected} == set(RULES.values()) and result["respond"]["rejected"] == Counter(row.rule for row in rejected)
    for row in rejected:
        assert row.problem.domain == "general" and row.rule == RULES[row.problem.question.split()[-1].strip(".")]
    for row in solved:
        if evolved[row.problem_id].domain == "math":
            assert (row.steps, row.answer, row.finished) == (("6*9=54",), "54", None)
        else:
            assert row.text == (OUTPUT if evolved[row.problem_id].domain == "general" else PROGRAM)
            assert (row.steps, row.answer, row.finished) == ((), None, True)

    # 3. All of it is trained on, seeds too.
    seeds = read_jsonl(run / "problems" / "seeds.jsonl", Problem)
    assert len(seeds) == len(rows) and {row.solution for row in seeds if row.domain != "math"} <= {(OUTPUT,), (PROGRAM,)}
    assert result["sft"]["rows"] == len(seeds) + len(solved) and result["sft"]["dropped_rows"] == 0
    assert (run / "sft" / "model" / "model.safetensors").is_file()
