"""PPO on one process, on two gloo ranks and under ZeRO 1-3: the same weights from stored rollouts, the same answers from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlef.models import load_policy
from tests.distributed.comparing import apart, divided, ending, prompts, start

# The first iteration is the critic's alone: its head starts at zero, and no gradient reaches its trunk before that has moved.
WARM, TEN = {"iterations": 3, "critic_warmup": 1}, {"iterations": 6, "critic_warmup": 1}
# Two of its four mini-batches are one sequence, a prompt with both answers: one of two ranks has nothing to do. Elsewhere both have
# several micro-batches.
ONE_SEQUENCE = {"share_prompts": True, "minibatches": 4}
LAYOUTS = {"whole": ONE_SEQUENCE, "lora": {"lora": {"rank": 4}}, "trunk": {"shared_trunk": True}}
EQUAL = [("whole", engine) for engine in ("torch", "zero1", "zero2", "zero3", "zero3_offload")] + [("lora", "zero2")]
EQUAL += [("trunk", "zero1"), ("trunk", "zero2"), ("trunk", "zero3")]
STOPS = {"iterations": 1, "share_prompts": True, "minibatches": 6, "critic_warmup": 0, "target_kl": 1e-6, "double": True}


@pytest.fixture(scope="module")
def learned(tiny_folder, tmp_path_factory):
    """PPO's updates on stored rollouts, by number of processes and case: with ten optimiser steps in fp32, with few in fp64."""
    folder = tmp_path_factory.mktemp("ppo")
    double = {f"{name}-double": WARM | layout | {"double": True} for name, layout in LAYOUTS.items()} | {"stops": STOPS}
    one = double | {f"{name}-torch": TEN | layout for name, layout in LAYOUTS.items()}
    two = double | {
        f"{name}-{engine}": TEN | LAYOUTS[name] | ({} if engine == "torch" else {"deepspeed": divided(engine, folder)})
        for name, engine in EQUAL
    }
    found = {}
    for processes, cases in ((1, one), (2, two)):
        (out := folder / str(processes)).mkdir()
        start("worker_ppo.py", processes, out, tiny_folder, json.dumps(cases))
        found[processes] = {name: torch.load(out / f"{name}.pt", weights_only=True) for name in cases}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout, engine", EQUAL)
def test_8_ten_updates_on_two_ranks_equal_those_on_one_process(learned, layout, engine):
    alone, two = learned[1][f"{layout}-torch"], learned[2][f"{layout}-{engine}"]
    rows = [list(ranks) for ranks in zip(*two["rows"], strict=True)]  # of each rank, by mini-batch
    if layout == "whole":
        assert rows == [[2, 2], [2, 2], [2, 0], [2, 0]] * 6
    else:
        assert all(sum(ranks) == 6 and min(ranks) >= 2 for ranks in rows) and len(rows) == 2 * 6
    assert sum(told["optim/steps"] for told in two["metrics"]) == len(rows)
    for one, other in zip(alone["metrics"], two["metrics"], strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)  # the policy's loss is what is left of terms of about 1
    assert apart(alone["state"], two["state"], alone["start"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_8_gradients_on_two_ranks_equal_those_on_one_process(learned, layout):
    """In fp64, of all nets at the optimiser: Adam would hide a wrong scale."""
    alone, two = (learned[processes][f"{layout}-double"]["gradients"] for processes in (1, 2))
    for net, steps in alone.items():
        for one, other in zip(steps, two[net], strict=True):
            assert one.abs().max() > 1e-3 and (one - other).abs().max() < 1e-10


@pytest.mark.slow
def test_31_two_ranks_stop_early_at_the_same_step(learned):
    """One of them has no row, and so no KL of its own, in the step that goes too far."""
    alone, two = (learned[processes]["stops"] for processes in (1, 2))
    assert two["rows"][1] == [0, 0] and two["metrics"][0]["ppo/early_stop"] == two["metrics"][0]["optim/steps"] == 1
    assert two["metrics"][0] == pytest.approx(alone["metrics"][0], rel=1e-4, abs=1e-6)
    for net, steps in alone["gradients"].items():
        assert len(steps) == len(two["gradients"][net]) == 1 and (steps[0] - two["gradients"][net][0]).abs().max() < 1e-10


@pytest.fixture(scope="module")
def practised(tiny_folder, tmp_path_factory):
    """The whole stage, by number of processes and engine: (its folder, weights, rows of the log, every answer); and where it began."""
    folder = tmp_path_factory.mktemp("practised")
    asked, policy = prompts(folder), ending(tiny_folder, folder)
    found = {}
    for processes, engines in ((1, ["torch"]), (2, ["torch", divided("zero3", folder)])):
        (out := folder / str(processes)).mkdir()
        start("fresh_worker.py", processes, out, policy, asked, *engines)
        for name in (Path(engine).stem for engine in engines):
            found[processes, name] = (out / name, *torch.load(out / f"{name}.pt", weights_only=True))
    return found, load_file(policy / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "zero3"])
def test_r14_fresh_rollouts_agree_on_one_process_and_two(practised, engine):
    """Each rank answers its share of the prompts, 3 and 2, whose rewards must come back to their own rows."""
    found, began = practised
    _, alone, one, answers = found[1, "torch"]
    folder, two, other, theirs = found[2, engine]
    assert answers.keys() == theirs.keys() and len(answers) == 3 * 5 * 2
    # Weights that differ in the last digit may turn a draw that falls on the border between two tokens. Of these 30 answers none did.
    assert [key for key in answers if answers[key] != theirs[key]] == []
    assert len(one) == 3 and one[2]["ppo/kl"] != 0 and one[0]["ppo/kl_coef"] != one[2]["ppo/kl_coef"]
    for row, told in zip(one, other, strict=True):
        assert told == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert apart(alone, two, began) < 1e-3
    saved = load_policy(folder / "model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in two.items())
