"""The label and respond stages on two ranks leave the same bytes as on one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rlef.models import load_policy, load_tokenizer, save_policy
from rlef.records import Problem, problem_id, write_jsonl

ROOT = Path(__file__).parents[2]
LABEL = {"count": 20, "samples": 2, "completions": 2, "max_tokens": 12, "batch_size": 8, "lists": 6, "list_size": 3}
SEEDS = [{"question": f"Ann has {n} pens. Ben has {n} more. How many has Ben?", "answer": str(2 * n)} for n in range(44)]


@pytest.fixture
def chatterbox(tiny_folder, tmp_path):
    """A model that says "1" at every other turn: a judge whose verdicts can be read."""
    model, tokenizer = load_policy(tiny_folder), load_tokenizer(tiny_folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("1")] *= 20
    save_policy(model, tokenizer, tmp_path / "chatterbox")
    return str(tmp_path / "chatterbox")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symbolic", "hf"])
def test_two_ranks_leave_what_one_process_does(tiny_folder, chatterbox, tmp_path, kind):
    stages = {
        "problems": {"seeds": 44, "held_out": 8},
        "evolve": {"rounds": 1, "per_round": 44, "near_duplicate_threshold": 1.0},
        "respond": {"count": 34, "samples": 2},
        "label": LABEL | {"policy": str(tiny_folder), "method": "monte_carlo", "consensus": True},
    }
    teacher = {"kind": kind, "max_tokens": 12}
    if kind == "hf":
        (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, SEEDS)))
        (tmp_path / "test.jsonl").write_text(json.dumps({"question": "How far is the sea?", "answer": "7"}))
        stages["problems"] |= {"source": "jsonl", "path": "seeds.jsonl", "held_out_path": "test.jsonl"}
        # What it evolves is cut off, and set aside.
        del stages["evolve"]
        texts = [f"Ben has {n} hens and sells {n % 7}. How many has he left?" for n in range(44)]
        write_jsonl(tmp_path / "made" / "evolved.jsonl", [Problem(id=problem_id(text), question=text) for text in texts])
        stages["respond"]["prompts"] = "made"
        teacher |= {"model": chatterbox}
    config = {"model": {"random": {}, "step_delimiter": " "}, "teacher": teacher, "tracking": {"wandb": "disabled"}, "stages": stages}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for processes in (1, 2):
        command = [sys.executable, "-m", "rlef", "run", "c.yaml", f"run.dir=run{processes}", f"launch.processes={processes}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, "launch.device=cpu"], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for stage in ("respond", "label"):
        one, two = (json.loads((tmp_path / f"run{processes}" / stage / "manifest.json").read_text()) for processes in (1, 2))
        assert one["files"] == two["files"] and one["result"] == two["result"]
        assert not any("shard" in file for file in two["files"])
