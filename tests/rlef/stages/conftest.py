"""What PPO needs before it: a policy, both reward models, prompts."""

from __future__ import annotations

import json
import shutil

import pytest

from reward_models.config import ProcessModelConfig
from reward_models.instruction import Calibration, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS
from rlef.records import Problem, problem_id, write_jsonl
from rlef.rl.reward import RewardFunction, Score


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


@pytest.fixture
def scored(inputs, tmp_path, monkeypatch):
    """The same, where an untrained policy is rewarded: a step is three tokens, its score a sum of them; answers end at any of sixty tokens.

    The checkpoint has sampling habits, as Qwen's have: nothing may read them.
    """
    monkeypatch.setattr(
        RewardFunction, "score", lambda self, problems, completions: [score_by_tokens(completion) for completion in completions]
    )
    start = shutil.copytree(inputs["init"], tmp_path / "start")
    habits = json.loads((start / "generation_config.json").read_text())
    habits |= {"eos_token_id": [habits["eos_token_id"], *range(20, 80)], "do_sample": True, "top_k": 1, "repetition_penalty": 9.0}
    (start / "generation_config.json").write_text(json.dumps(habits))
    return inputs | {"init": start}


def score_by_tokens(completion):
    """Of a step of three tokens a sum of them; of an answer that is cut off nothing."""
    length = len(completion.tokens)
    slots = [*range(2, length - 1, 3), length - 1]
    steps = [completion.tokens[first : slot + 1] for first, slot in zip([0, *(slot + 1 for slot in slots)], slots, strict=False)]
    scores = [0.02 + 0.96 * (sum(place * token for place, token in enumerate(step, start=1)) % 97) / 97 for step in steps]
    zeroed = None if completion.finished else "unfinished"
    answer = 0.0 if zeroed else min(scores)
    return Score(str(completion.tokens), tuple(map(str, steps)), tuple(scores), tuple(slots), 0.5, answer, zeroed, "1", 0, 0)
