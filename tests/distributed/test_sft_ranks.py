"""The SFT stage goes on with another number of ranks, and what it then saves is whole and is what was measured."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from rlef.records import Problem, problem_id, write_jsonl
from tests.distributed.comparing import start


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    rows = []
    for a in range(8):
        for b in range(8):
            question = f"Ann has {a} pens. Ben has {b} more. How many pens does Ben have?"
            rows.append(Problem(id=problem_id(question), question=question, solution=(f"{a}+{b}={a + b}",), answer=str(a + b)))
    write_jsonl(folder / "seeds.jsonl", rows)
    return folder


def train(folder, problems, processes):
    folder.mkdir(parents=True, exist_ok=True)
    start("sft_worker.py", processes, folder, problems, timeout_s=400)
    return json.loads((folder / "result.json").read_text())


def logits(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = torch.tensor([tokenizer.encode("<|user|>Ann has 3 pens.<|assistant|>3+4=7\n#### 7<|end|>")])
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def alone(problems, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return train(folder, problems, 1), logits(folder), folder


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_from_a_checkpoint(alone, problems, tmp_path):
    """From one to two and from two to one: the second goes on from what the first wrote."""
    expected, expected_logits, before = alone
    for processes, step in ((2, 16), (1, 24)):
        shutil.copytree(before / "checkpoints" / f"checkpoint-{step}", tmp_path / f"{processes}" / "checkpoints" / f"checkpoint-{step}")
        before = tmp_path / f"{processes}"
        result = train(before, problems, processes)
        assert result["steps"] == expected["steps"] and result["loss"] == pytest.approx(expected["loss"], rel=1e-2)
        assert result["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-2)
        assert torch.allclose(logits(before), expected_logits, atol=0.05)
