"""A PRM that stops early on two ranks, without DeepSpeed and under ZeRO-2 and 3: the ranks decide alike, what is saved is what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from reward_models.records import SteppedSolution
from tests.distributed.comparing import ROOT, start

LORA = {"lora": {"rank": 4}}
CASES = {
    "plain": {},
    "zero3": {},
    "plain-lora": LORA | {"gradient_checkpointing": True},
    "zero2-bf16": {"bf16": True},
    "zero3-lora-bf16": LORA | {"bf16": True},
}


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


@pytest.fixture(scope="module")
def trained(labels, tiny_folder, tmp_path_factory):
    """A folder with what one process made in one/alone, two ranks in two/CASE."""
    out = tmp_path_factory.mktemp("trained")
    files = {name: {"deepspeed": str(ROOT / "configs" / "deepspeed" / f"{name}.json")} for name in ("zero2", "zero3")}
    two = {name: files.get(name.split("-")[0], {}) | further for name, further in CASES.items()}
    start("reward_worker.py", 1, labels, tiny_folder, out / "one", json.dumps({"alone": {}}))
    start("reward_worker.py", 2, labels, tiny_folder, out / "two", json.dumps(two))
    return out


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_keep_the_weights_that_one_process_keeps(trained, labels, case):
    from reward_models.evaluate import score_solutions, step_measures
    from reward_models.process import ProcessRewardModel
    from reward_models.records import is_held_out, read_records

    alone, result = metrics(trained / "one" / "alone"), metrics(trained / "two" / case)
    assert len(result["early_stopping"]["looks"]) > 1
    held_out = [row for row in read_records(labels, SteppedSolution) if is_held_out(row)]
    loaded = step_measures(score_solutions(ProcessRewardModel.load(trained / "two" / case), held_out), result["threshold"])
    assert loaded["brier"] == pytest.approx(result["brier"], abs=1e-5)
    assert result["early_stopping"]["looks"][0]["measured"] == pytest.approx(alone["early_stopping"]["looks"][0]["measured"], abs=0.1)
    assert result["train_solutions"] == alone["train_solutions"] and result["held_out_solutions"] == len(held_out)


@pytest.mark.slow
def test_the_command_line_shares_an_optimiser_step_among_ranks(labels, tiny_folder, tmp_path):
    """As many steps as one process would take, and one result."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "reward_models", "train", "prm"]
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
    done = subprocess.run([*ranks, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert f"step 1 of {-(-result['train_solutions'] // 8)}," in done.stderr
