"""Every engine on two ranks: against brute force, after discarded and broken gradients, saved and loaded."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from tests.distributed.comparing import start

WORKER = Path(__file__).parent / "engine_worker.py"
EXACT = ["torch", "0", "1", "2", "3", "zero2_offload", "zero3_offload"]
HALF = ["torch-bf16", "0-bf16", "2-bf16", "3-bf16"]
AGAIN = ["torch-again", "1-again"]  # on one process, like those "alone"
# Whose checkpoint it goes on from: another number of ranks, another ZeRO stage, both.
OTHER = {"torch": "1-alone", "0": "torch", "1": "torch-alone", "2": "1", "3": "2", "zero2_offload": "3", "torch-again": "2", "1-again": "3"}
OTHER |= {"2-bf16": "torch-bf16"}
SCALED = ["2-fp16", "3-fp16"]


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(str(WORKER))["reference"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines")
    alone, two = ["torch-alone", "1-alone"], [f"{name}:{OTHER[name]}" if name in OTHER else name for name in EXACT + HALF + SCALED]
    for ranks, names in ((1, alone), (2, two), (1, [f"{name}:{OTHER[name]}" for name in AGAIN])):
        start("engine_worker.py", ranks, out, *names)
    return out


@pytest.fixture
def result(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def apart(one, other):
    """The largest relative difference of any weight tensor."""
    assert one.keys() == other.keys()
    return max(((one[name].float() - other[name].float()).norm() / other[name].norm()).item() for name in other)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_two_steps_of_two_micro_batches_equal_brute_force(result, reference):
    # Adam hides a wrong scale of the gradient; its norm does not.
    assert result["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    assert apart(result["weights"], reference["weights"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF + SCALED)
def test_half_precision_engines_agree_up_to_rounding(result, reference, name):
    assert result["norms"] == pytest.approx(reference["norms"], rel=1e-3)
    assert apart(result["weights"], reference["weights"]) < 0.02
    half = torch.float16 if name in SCALED else torch.bfloat16
    assert all(weight.dtype == half for weight in result["weights"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT + HALF + SCALED)
def test_discarded_and_broken_gradients_leave_no_trace(result):
    skipped, norm = result["broken"]
    assert skipped and not torch.tensor(norm).isfinite()
    assert result["undisturbed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT + HALF + SCALED)
def test_saved_and_loaded_engines_go_on_bitwise(result):
    assert result["resumed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OTHER if name not in HALF])
def test_another_number_of_ranks_and_another_zero_stage_go_on_alike(result, reference):
    assert apart(result["crossed"], reference["weights"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-bf16"])
def test_half_precision_goes_on_alike_from_another_engine(result):
    assert apart(result["crossed"], result["weights"]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT + HALF + SCALED)
def test_whole_weights_are_walked_and_saved(result, folder, name):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder / f"{name}-model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    saved = dict(model.named_parameters())
    assert saved.keys() == result["weights"].keys() == result["walked"].keys()
    for key, weight in result["weights"].items():
        assert torch.equal(weight, saved[key]) and torch.equal(weight, result["walked"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch"])
def test_objects_travel_between_ranks(result):
    assert result["gathered"] == [0, 1] and result["told"] == 0
