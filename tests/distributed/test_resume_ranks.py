"""Trainers killed under DeepSpeed go on with another number of ranks or ZeRO stage, or without it, to the weights of the undisturbed run."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from reward_models.records import SteppedSolution
from rlef.records import Problem, problem_id, write_jsonl
from tests.distributed.comparing import apart, divided, start

# Name, DeepSpeed file, the one from whose checkpoints it goes on, the step in which it is told to stop: in the second epoch or later.
KINDS = {"sft": 9, "prm": 7, "dpo": 7}
ON_TWO_RANKS = ("whole:zero2::", "cut:zero2::{stop}", "same:zero2:cut:", "three:zero3:cut:")
ON_ONE_FIRST = ("sft/cut_alone:::9",)
FURTHER = (
    "sft/grown::cut_alone:",
    "sft/grown_zero:zero2:cut_alone:",
    "sft/cut_one:zero1::8",
    "sft/cut_two:zero2:cut_one:10",
    "sft/plain::cut_two:",
    "sft/cut_plain:::9",
    "sft/from_plain:zero3:cut_plain:",
)
ON_ONE = ("sft/alone:zero1:cut:", "sft/undamaged::damaged:", "prm/alone:zero1:cut:", "dpo/alone:zero1:cut:")
STOPPED = ("cut", "damaged")
TOLERANCE = 1e-3  # the distance of two updates over the length of one


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    shutil.copytree(tiny_folder, root / "policy")
    questions = [f"Ann has {a} pens. Ben has {b} more." for a in range(8) for b in range(6)]
    write_jsonl(
        root / "seeds.jsonl", [Problem(id=problem_id(one), question=one, solution=(f"{one[8]}+1=2",), answer="2") for one in questions]
    )
    rows = [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=(f"{n}+1={n + 1}", f"{n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x"
        )
        for n in range(40)
    ]  # fmt: skip
    (root / "steps.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    for zero in ("zero1", "zero2", "zero3"):
        divided(zero, root)
    start("resume_worker.py", 1, root, *ON_ONE_FIRST)
    cases = [f"{kind}/{case.format(stop=stop)}" for kind, stop in KINDS.items() for case in ON_TWO_RANKS]
    start("resume_worker.py", 2, root, *cases, *FURTHER)
    shutil.copytree(root / "sft" / "cut", root / "sft" / "damaged")
    (root / "sft" / "damaged" / "checkpoints" / f"checkpoint-{KINDS['sft']}" / "trained" / "00000.safetensors").write_bytes(b"damaged")
    start("resume_worker.py", 1, root, *ON_ONE)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trainings_go_on_with_another_number_of_ranks_or_zero_stage(kind, trained):
    began = load_file(trained / "policy" / "model.safetensors")
    ended = {folder.name: final(folder) for folder in (trained / kind).iterdir() if not folder.name.startswith(STOPPED)}
    distances = {name: apart(ended["whole"], weights, began) for name, weights in ended.items()}
    assert distances["same"] == 0.0
    assert max(distances.values()) < TOLERANCE, distances


def final(folder):
    return load_file(next(file for file in (folder / "model" / "model.safetensors", folder / "model.safetensors") if file.is_file()))
