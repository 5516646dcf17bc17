"""A PRM that stops early on two ranks, without DeepSpeed and under ZeRO-2 and 3: the ranks decide alike, what is saved is what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reward_models.records import SteppedSolution

WORKER = Path(__file__).parent / "reward_worker.py"
ROOT = WORKER.parents[2]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    file = tmp_path_factory.mktemp("labels") / "steps.jsonl"
    rows = [
        SteppedSolution(
            problem_id=str(n), question=f"Ann has {n} pens.", steps=(f"{n}+1={n + 1}", f"{n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x"
        )
        for n in range(60)
    ]  # fmt: skip
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def train(labels, policy, out, processes, zero, **further):
    start = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else [])]
    path = str(ROOT / "configs" / "deepspeed" / f"{zero}.json") if zero else "-"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    command = [*start, str(WORKER), str(labels), str(policy), str(out), path, json.dumps(further)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def alone(labels, tiny_folder, tmp_path_factory):
    return train(labels, tiny_folder, tmp_path_factory.mktemp("alone"), 1, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "zero,further",
    [
        (None, {}),
        ("zero3", {}),
        (None, {"lora": {"rank": 4}, "gradient_checkpointing": True}),
        ("zero2", {"bf16": True}),
        ("zero3", {"lora": {"rank": 4}, "bf16": True}),
    ],
    ids=str,
)
def test_two_ranks_keep_the_weights_that_one_process_keeps(alone, labels, tiny_folder, tmp_path, zero, further):
    from reward_models.evaluate import score_solutions, step_measures
    from reward_models.process import ProcessRewardModel
    from reward_models.records import is_held_out, read_records

    result = train(labels, tiny_folder, tmp_path, 2, zero, **further)
    assert len(result["early_stopping"]["looks"]) > 1
    held_out = [row for row in read_records(labels, SteppedSolution) if is_held_out(row)]
    loaded = step_measures(score_solutions(ProcessRewardModel.load(tmp_path), held_out), result["threshold"])
    assert loaded["brier"] == pytest.approx(result["brier"], abs=1e-5)
    assert result["early_stopping"]["looks"][0]["measured"] == pytest.approx(alone["early_stopping"]["looks"][0]["measured"], abs=0.1)
    assert result["train_solutions"] == alone["train_solutions"] and result["held_out_solutions"] == len(held_out)


@pytest.mark.slow
def test_the_command_line_shares_an_optimiser_step_among_ranks(labels, tiny_folder, tmp_path):
    """As many steps as one process would take, and one result."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "reward_models", "train", "prm"]
    words = [
        "--labels",
        str(labels),
        "--init",
        str(tiny_folder),
        "--out",
        str(tmp_path / "o"),
        "--batch-size",
        "8",
        "--micro-batch-size",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert f"step 1 of {-(-result['train_solutions'] // 8)}," in done.stderr
