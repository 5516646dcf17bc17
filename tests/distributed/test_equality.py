"""SFT, both reward models, DPO and GRPO learn on two ranks, with and without ZeRO 1-3, what one process learns; what they save is that."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from reward_models.records import RankedItem, RankedList, SteppedSolution
from rlef.records import Problem, problem_id, write_jsonl
from tests.distributed.comparing import apart, divided, ending, start

ENGINES = ("torch", "zero1", "zero2", "zero3")
STAGES = {
    "sft": "AutoModelForCausalLM",
    "irm": "AutoModelForSequenceClassification",
    "prm": "AutoModelForTokenClassification",
    "dpo": "AutoModelForCausalLM",
    "grpo": "AutoModelForCausalLM",
}


@pytest.fixture(scope="module")
def policy(tiny_folder, tmp_path_factory):
    """A policy whose answers end."""
    return ending(tiny_folder, tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    """Rows of very unequal lengths, and what each engine made of them: of one process below one/, of two ranks below two/."""
    out = tmp_path_factory.mktemp("equality")
    problems, steps, lists = [], [], []
    for n in range(100):
        question = f"Ann has {n // 10} pens. Ben has {n % 10} more. How many pens does Ben have?"
        solution = (f"{n // 10}+{n % 10}={n // 10 + n % 10}",) * (1 + n % 3)
        problems.append(Problem(id=problem_id(question), question=question, solution=solution, answer=str(n // 10 + n % 10)))
        split, length = "train" if n < 80 else "held_out", 1 + n % 5
        labels = tuple((n + step) % 2 for step in range(length))
        steps.append(
            SteppedSolution(
                problem_id=str(n), question=f"{n} pens.", steps=(f"{n}+1={n + 1}",) * length, labels=labels, labeller="x", split=split
            )
        )
        items = tuple(RankedItem(text=f"Ann {n} {rank} " * (1 + (n + rank) % 4), rank=rank) for rank in range(2 + n % 3))
        lists.append(RankedList(seed_id=str(n), labeller="x", items=items, split=split))
    for name, rows in {"seeds": problems, "steps": steps, "rankings": lists}.items():
        write_jsonl(out / f"{name}.jsonl", rows)
    files = [divided(engine, out) for engine in ENGINES[1:]]
    start("equality_worker.py", 1, out / "one", policy, out, "torch")
    start("equality_worker.py", 2, out / "two", policy, out, "torch", *files)
    return out


def losses(folder):
    return json.loads((folder / "losses.json").read_text())


def scores(folder, kind):
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45)[None]).logits


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_learn_what_one_process_learns(folder, policy, engine, stage):
    one, two = folder / "one" / "torch" / stage, folder / "two" / engine / stage
    assert len(losses(one)) >= 10 and losses(two) == pytest.approx(losses(one), rel=1e-5)
    alone, ranks = (load_file(place / "model" / "model.safetensors") for place in (one, two))
    assert apart(alone, ranks, load_file(policy / "model.safetensors")) < 1e-4
    assert torch.allclose(scores(two / "model", STAGES[stage]), scores(one / "model", STAGES[stage]), atol=1e-5)
    assert not list(two.rglob("*.bin"))  # Trainers leave a pickle beside the model
