"""The benchmark of PPO on the tiny model: forced lengths on both sides, and what is held against what; nothing is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
LINES = [
    {"question": f"Ann has {a} pens and finds {b} more. How many?", "answer": "She has some.\n" * (1 + (a + b) % 3) + f"#### {a + b}"}
    for a in range(2, 8)
    for b in range(10, 14)
]


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the others import it by this name
    spec.loader.exec_module(module)
    return module


for name in ("benchmark_tables", "benchmark_reward_models", "benchmark_job"):
    script(name)
ppo, job = script("benchmark_ppo"), script("benchmark_ppo_job")


@pytest.fixture
def bench(tiny_folder, tmp_path, monkeypatch):
    """Its jobs run in this process, those of the peer not at all."""
    scale = ppo.Scale(prompts=2, samples=2, iterations=1, epochs=2, together=3, micro=2, max_tokens=60, repeats=1)
    bench = ppo.PpoBench("small", tiny_folder, scale, tmp_path / "out", "no python", 1, LINES)
    bench.asked = []

    def measure(python, one, folder, script):
        assert script == "benchmark_ppo_job.py"
        folder.mkdir(parents=True, exist_ok=True)
        bench.asked.append(one | {"python": python})
        if python == "no python":
            return bench.peer_found
        for name, function in forced.items():  # a job replaces them, and is one of its process elsewhere
            monkeypatch.setattr(hf, name, function)
        found = job.JOBS[one["kind"]](one | {"out": str(folder)})
        return found | {"peak_bytes": 10 * 2**20} if "peak_bytes" in found else found

    from rlef.rollout import hf

    forced = {name: getattr(hf, name) for name in ("_draw", "keyed_uniforms")}
    monkeypatch.setattr(ppo, "measure", measure)
    phases = dict.fromkeys(ppo.PHASES, 100.0)
    bench.peer_found = {
        "seconds": 400.0, "iterations": 1, "steps": 2, "phases": phases, "processor_seconds": 400.0, "peak_bytes": 20 * 2**20,
    }  # fmt: skip
    return bench


def test_a_forced_row_ends_and_no_other_can():
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    found = job.forced(logits, torch.tensor([True, False]), 2, [2, 0])
    assert found.softmax(-1).tolist() == [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]] and logits[0, 0] == 1
    processor = job.Forced([2, 3], 4, 2, [2])
    for made, ends in ((0, [False, False]), (1, [True, False]), (2, [False, True])):
        scores = processor(torch.zeros(2, 4 + made), logits)
        assert [bool(row[2] == 0) for row in scores] == ends and [bool(torch.isinf(row[2])) for row in scores] == [not end for end in ends]


def test_rows_come_in_the_order_of_the_stage_with_one_batch_to_spare(bench):
    prompts, rows = (job.rows_of(path) for path in bench.rows())
    assert len(prompts) == 4 and [row["iteration"] for row in rows] == [0] * 4 + [1] * 4 + [0] * 4
    assert [row["sample"] for row in rows[:4]] == [0, 1, 0, 1] and rows[0]["id"] == rows[1]["id"] != rows[2]["id"]
    assert len({row["length"] for row in rows}) > 1 and max(row["length"] for row in rows) <= 60
    assert (bench.rows(), rows) == (bench.rows(), job.rows_of(bench.rows()[1]))


def test_generation_gives_both_sides_the_lengths_of_the_list(bench):
    table = bench.generation()  # the job itself asserts that both have them
    assert table.lines[0].bar == ">= 1.80" and bench.asked[0]["together"] == 3


def test_an_iteration_of_ours_has_as_many_steps_as_asked_and_is_held_against_theirs(bench):
    table = bench.speed()
    ours, shared, theirs = bench.asked
    assert (ours["settings"]["epochs"], ours["settings"]["minibatches"]) == (2, 1) and theirs["arguments"]["num_ppo_epochs"] == 2
    assert shared["settings"]["share_prompts"] and "share_prompts" not in ours["settings"]
    assert ours["rows"] == theirs["rows"] and theirs["arguments"]["gradient_accumulation_steps"] == 2
    assert table.lines[0].bar == ">= 2.00" and table.lines[0].met  # against 400 seconds
    bench.peer_found["steps"] = 3
    with pytest.raises(AssertionError, match="optimiser steps"):
        bench.speed()


def test_memory_and_utilisation(bench):
    line = bench.memory().lines[0]
    assert line.median == 0.5 and line.met and all(one["memory"] for one in bench.asked)
    utilised = bench.utilisation()
    assert [one.bar for one in utilised.lines] == [">= 0.70", ">= 1.10"] * 2 and all(one.median > 0 for one in utilised.lines)
