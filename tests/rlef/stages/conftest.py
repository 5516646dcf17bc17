"""What PPO needs before it: a policy, both reward models, prompts."""

from __future__ import annotations

import pytest

from reward_models.config import ProcessModelConfig
from reward_models.instruction import Calibration, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS
from rlef.records import Problem, problem_id, write_jsonl


@pytest.fixture
def inputs(tiny_folder, tmp_path):
    for kind, name in (("instruction", "irm"), ("process", "prm")):
        model, tokenizer = build(kind, tiny_folder, separator="<|step|>" if name == "prm" else None)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_calibration(Calibration((0.0, 0.1), 1.0, 0.05, 64), tmp_path / "irm")
    (tmp_path / "prm" / SETTINGS).write_text(ProcessModelConfig().model_dump_json())
    questions = [f"Ann has {a} pens. Ben has {b} more. How many?" for a in range(4) for b in range(4)]
    write_jsonl(tmp_path / "prompts" / "prompts.jsonl", [Problem(id=problem_id(q), question=q, answer="1") for q in questions])
    return {"init": tiny_folder, "irm": tmp_path / "irm", "prm": tmp_path / "prm", "prompts": tmp_path / "prompts"}
