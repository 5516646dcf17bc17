"""Early stopping on rows of its own, and the card that a trained model gets."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

from reward_models.card import model_card
from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.early_stopping import BestWeights
from reward_models.errors import UserError
from reward_models.evaluate import evaluate_process, score_solutions, step_measures
from reward_models.process import ProcessRewardModel
from reward_models.records import RankedItem, RankedList, SteppedSolution, is_development, is_held_out
from reward_models.train import TrainOptions, train_instruction, train_process


@pytest.mark.parametrize(
    "values,patience,ended,best,saved",
    [
        ([0.5, 0.7, 0.6, 0.65, 0.9], 2, 8, 4, [0.5, 0.7]),
        ([0.5, 0.7, 0.6, 0.65, 0.9], None, 10, 10, [0.5, 0.7, 0.9]),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 3, 8, 2, [0.5]),
    ],
)
def test_the_best_look_is_kept_and_patience_counts_looks_since_it(values, patience, ended, best, saved):
    left, kept = list(values), []
    looks = BestWeights(lambda: left.pop(0), lambda: kept.append(values[len(values) - len(left) - 1]), 2, patience)
    control, step = SimpleNamespace(should_training_stop=False), 0
    while not control.should_training_stop and step < 10:
        step += 1
        looks.on_step_end(None, SimpleNamespace(global_step=step), control)
    looks.on_train_end(None, SimpleNamespace(global_step=step), control)
    assert (step, looks.best_step, kept) == (ended, best, saved)


def test_the_last_step_is_looked_at_too_and_nothing_to_measure_is_a_mistake():
    looks = BestWeights(lambda: 0.5, lambda: None, 4, None)
    looks.on_train_end(None, SimpleNamespace(global_step=3), None)
    assert looks.looks == {3: 0.5}
    with pytest.raises(UserError, match="too little to measure by"):
        BestWeights(lambda: float("nan"), lambda: None, 1, None).on_train_end(None, SimpleNamespace(global_step=1), None)


def solutions():
    return [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=(f"Ann {n}+1={n + 1}", f"Ben {n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x", split="held_out" if n % 7 == 0 else "train",
            answer=str(n % 3), correct=n % 3 == 0,
        )
        for n in range(60)
    ]  # fmt: skip


def write(file, rows):
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def test_weights_are_those_of_the_best_look_at_rows_that_are_neither_trained_on_nor_measured(policy_folder, tmp_path):
    rows, out = solutions(), tmp_path / "prm"
    options = TrainOptions(learning_rate=3e-3, batch_size=8, eval_every=2, patience=3)
    result = train_process(write(tmp_path / "s.jsonl", rows), policy_folder, out, ProcessModelConfig(epochs=4), options)
    development = [row for row in rows if not is_held_out(row) and is_development(row)]
    found = result["early_stopping"]
    values = {look["step"]: look["measured"] for look in found["looks"]}
    assert len(values) > 2 and found["rows"] == len(development) > 0 and values[found["best_step"]] == max(values.values())
    assert result["train_solutions"] == sum(not is_held_out(row) for row in rows) - len(development)
    kept = ProcessRewardModel.load(out)
    assert step_measures(score_solutions(kept, development), 0.5)["step_auroc"] == pytest.approx(max(values.values()), abs=1e-9)
    held_out = [row for row in rows if is_held_out(row)]
    assert evaluate_process(kept, held_out, threshold=result["threshold"])["brier"] == pytest.approx(result["brier"], abs=1e-6)
    card = (out / "README.md").read_text()
    assert f"weights of step {found['best_step']}" in card and str(tmp_path) not in card and str(policy_folder) not in card


def test_without_looks_all_rows_are_trained_on_and_the_last_weights_are_kept(policy_folder, tmp_path):
    rows = solutions()
    file, weights = write(tmp_path / "s.jsonl", rows), []
    for name, options in (("a", TrainOptions(batch_size=16)), ("b", TrainOptions(batch_size=16, eval_every=None, patience=1))):
        result = train_process(file, policy_folder, tmp_path / name, ProcessModelConfig(epochs=1), options)
        weights.append(torch.cat([p.flatten() for p in ProcessRewardModel.load(tmp_path / name).model.parameters()]))
    assert torch.equal(*weights) and "early_stopping" not in result and result["train_solutions"] == 51


def test_irm_stops_early_and_has_a_card(policy_folder, tmp_path):
    lists = [
        RankedList(
            seed_id=str(n), labeller="x", split="held_out" if n % 6 == 0 else "train",
            items=tuple(RankedItem(text=f"{word} {n}.", rank=rank) for rank, word in enumerate(("Ann has", "Ann has some", "Some"))),
        )
        for n in range(48)
    ]  # fmt: skip
    out, options = tmp_path / "irm", TrainOptions(learning_rate=2e-3, batch_size=8, eval_every=2, patience=2)
    result = train_instruction(
        write(tmp_path / "r.jsonl", lists), policy_folder, out, InstructionModelConfig(epochs=6, references=8), options
    )
    assert result["early_stopping"]["metric"] == "pair_accuracy" and result["held_out_lists"] == 8
    header, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (out / "README.md").read_text(), re.DOTALL).groups()
    assert yaml.safe_load(header) == {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["reward-model"]}
    assert "| pair_accuracy |" in text and "held out: 8" in text and "calibration.json" in text and str(tmp_path) not in text
    assert json.loads((out / "metrics.json").read_text())["early_stopping"]["best_step"] == result["early_stopping"]["best_step"]


def test_a_card_names_a_hub_model_and_no_folder():
    result = {
        "train_solutions": 5, "held_out_solutions": 2, "dropped": {"too_long": 1}, "right_steps": 0.75, "threshold": 0.4, "step_auroc": 0.9,
        "intervals": {"step_auroc": [0.8, 0.95]}, "set_aside": 3,
    }  # fmt: skip
    card = model_card("prm", "owner/model", "/home/me/steps.jsonl", solutions()[:8], result, separator="<|step|>")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "owner/model" and "/home" not in card
    assert (
        "8 solutions of `steps.jsonl`; labelled by: x 8" in card
        and "too long 1" in card
        and "| step_auroc | 0.900 | 0.800 to 0.950 |" in card
    )
    assert 'convert_tokens_to_ids("<|step|>")' in card and "could not be read: 3" in card
    assert "base_model" not in model_card("prm", "/home/me/base", "s.jsonl", [], result, separator="x")


def test_too_few_rows_for_looks_are_a_mistake(policy_folder, tmp_path):
    few = [row for row in solutions() if is_held_out(row) or not is_development(row)]
    with pytest.raises(UserError, match="too few rows"):
        train_process(write(tmp_path / "s.jsonl", few), policy_folder, tmp_path / "o", ProcessModelConfig(), TrainOptions(eval_every=1))


def test_rows_of_another_project_train_as_they_are_and_those_that_cannot_be_read_are_counted(policy_folder, tmp_path):
    rows = [
        {"input": f"{n}? Step 1: Ann {n} ки\nStep 2: Ben {n} ки", "label": f"{n}? Step 1: Ann {n} +\nStep 2: Ben {n} -", "task": "x"} for n in range(30)
    ]  # fmt: skip
    file = tmp_path / "m.jsonl"
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, {"input": "1? Step 1: a ки", "label": "b"}]), encoding="utf-8"
    )
    result = train_process(file, policy_folder, tmp_path / "o", ProcessModelConfig(epochs=1), TrainOptions(batch_size=8))
    assert result["train_solutions"] + result["held_out_solutions"] == 30 and result["set_aside"] == 1
    assert "could not be read: 1" in (tmp_path / "o" / "README.md").read_text()
