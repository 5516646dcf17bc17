"""Adapters, bfloat16, gradient checkpointing and resuming: what they change, and what they must not."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback

from reward_models.config import InstructionModelConfig, LoraSettings, ProcessModelConfig
from reward_models.errors import UserError
from reward_models.evaluate import score_solutions, step_measures
from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel
from reward_models.records import RankedItem, RankedList, SteppedSolution, is_held_out
from reward_models.train import TrainOptions, train_instruction, train_process

FAST = TrainOptions(learning_rate=3e-3, batch_size=8, micro_batch_size=4)


def options(**changed):
    return TrainOptions(**{**vars(FAST), **changed})


def solutions():
    return [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=(f"Ann {n}+1={n + 1}", f"Ben {n}+{2 + n % 2}={n + 3}"), labels=(1, n % 2), labeller="x",
        )
        for n in range(60)
    ]  # fmt: skip


@pytest.fixture
def steps_file(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(row.model_dump_json() + "\n" for row in solutions()))
    return file


@pytest.fixture
def lists_file(tmp_path):
    rows = [
        RankedList(
            seed_id=str(n), labeller="x",
            items=tuple(RankedItem(text=f"{word} {n}.", rank=rank) for rank, word in enumerate(("Ann has", "Ann has some", "Some"))),
        )
        for n in range(48)
    ]  # fmt: skip
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_an_adapter_learns_with_the_trunk_left_alone_and_is_saved_with_its_head(policy_folder, steps_file, tmp_path):
    before = load_file(policy_folder / "model.safetensors")
    out = tmp_path / "prm"
    trained = options(lora=LoraSettings(rank=4, alpha=8), learning_rate=1e-2)
    result = train_process(steps_file, policy_folder, out, ProcessModelConfig(epochs=6), trained)
    assert result["step_auroc"] > 0.8
    after, tokenizer = weights(out), AutoTokenizer.from_pretrained(out)
    mark = tokenizer.convert_tokens_to_ids("<|step|>")
    rows = before["model.embed_tokens.weight"].shape[0]
    assert torch.equal(after["model.embed_tokens.weight"][:rows], before["model.embed_tokens.weight"]) and mark >= rows
    assert not torch.equal(after["model.embed_tokens.weight"][mark], before["model.embed_tokens.weight"].mean(0))  # it has learned too
    change = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert 1 <= torch.linalg.matrix_rank(change, atol=1e-6) <= 4
    assert torch.equal(after["model.layers.0.input_layernorm.weight"], before["model.layers.0.input_layernorm.weight"])

    # The adapter alone, on the base model, by its own library: the same scores, so the head came with it.
    adapter = AutoPeftModelForTokenClassification.from_pretrained(out / "adapter", num_labels=1).eval()
    held_out = [row for row in solutions() if is_held_out(row)]
    ours, settings = ProcessRewardModel.load(out), ProcessModelConfig()
    theirs = ProcessRewardModel(adapter, tokenizer, settings)
    for row in held_out:
        score = ours.score([row.question], [row.steps])[0].scores
        assert theirs.score([row.question], [row.steps])[0].scores == pytest.approx(score, abs=1e-5)


def test_an_irm_adapter_gives_the_scores_of_the_merged_model(policy_folder, lists_file, tmp_path):
    out = tmp_path / "irm"
    trained = options(lora=LoraSettings(rank=4), eval_every=3, patience=5)
    result = train_instruction(lists_file, policy_folder, out, InstructionModelConfig(epochs=4, references=8), trained)
    assert result["pair_accuracy"] > 0.9 and result["early_stopping"]["looks"]
    model = InstructionRewardModel.load(out)
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(out / "adapter", num_labels=1).eval()
    adapter.config.pad_token_id = model.tokenizer.pad_token_id
    other = InstructionRewardModel(adapter, model.tokenizer, model.calibration)
    texts = ["Ann has 3.", "Some 4."]
    assert other.raw_scores(texts) == pytest.approx(model.raw_scores(texts), abs=1e-5)


def test_a_model_without_its_head_or_calibration_does_not_load(policy_folder, lists_file, tmp_path):
    out = tmp_path / "irm"
    train_instruction(lists_file, policy_folder, out, InstructionModelConfig(epochs=1, references=8), FAST)
    kept = {name: value for name, value in weights(out).items() if not name.startswith("score")}
    from safetensors.torch import save_file

    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no weights for score"):
        InstructionRewardModel.load(out)
    (out / "calibration.json").unlink()
    with pytest.raises(UserError, match="no calibration"):
        InstructionRewardModel.load(out)


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))


def test_gradient_checkpointing_changes_no_gradient_and_bf16_little(policy_folder, steps_file, tmp_path, monkeypatch):
    from reward_models import train

    dtypes, real = set(), train.step_loss
    monkeypatch.setattr(train, "step_loss", lambda logits, *rest, **named: dtypes.add(logits.dtype) or real(logits, *rest, **named))
    found = {}
    for name, changed in (("plain", {}), ("checkpointing", {"gradient_checkpointing": True}), ("bf16", {"bf16": True})):
        seen = Gradients()
        how = options(learning_rate=1e-9, max_grad_norm=1e9, callbacks=(seen,), **changed)
        train_process(steps_file, policy_folder, tmp_path / name, ProcessModelConfig(epochs=1), how)
        found[name] = seen.seen
    assert len(found["plain"]) > 3
    for plain, kept, half in zip(*found.values(), strict=True):
        assert (plain - kept).abs().max() <= 1e-6 * plain.abs().max()
        assert half.dtype == torch.float32 and 0 < (plain - half).norm() < 0.05 * plain.norm()
    assert dtypes == {torch.float32}
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.float32}


def test_bf16_moves_weights_by_less_than_its_own_spacing(policy_folder, steps_file, tmp_path):
    before = load_file(policy_folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    train_process(steps_file, policy_folder, tmp_path / "o", ProcessModelConfig(epochs=1), options(bf16=True, learning_rate=1e-7))
    after = weights(tmp_path / "o")["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(before, after) and (before.bfloat16() == after.bfloat16()).float().mean() > 0.98  # few lie at an edge


class Killed(TrainerCallback):
    """Ends the training at the end of a step, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["whole", "adapter"])
def test_a_training_cut_off_goes_on_from_its_checkpoint_to_the_same_weights(policy_folder, steps_file, tmp_path, lora):
    settings, how = ProcessModelConfig(epochs=3), {"save_every": 2, "eval_every": 3, "patience": 9, "lora": lora}
    whole = train_process(steps_file, policy_folder, tmp_path / "whole", settings, options(**how))
    cut = tmp_path / "cut"
    for step in (5, 9):  # twice, the second time from the first's checkpoint; a look after the checkpoint is taken again
        with pytest.raises(KeyboardInterrupt):
            train_process(steps_file, policy_folder, cut, settings, options(**how, callbacks=(Killed(step),)))
        left_behind = cut / "checkpoint" / "checkpoint-6" / "counted_00001.json"  # by a second rank, when both were killed
        if step == 5:
            left_behind.parent.mkdir()
            left_behind.touch()
    assert not left_behind.exists()
    assert {folder.name for folder in (cut / "checkpoint").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    (cut / "checkpoint" / "checkpoint-8" / "trainer_state.json").unlink()  # damaged
    again = train_process(steps_file, policy_folder, cut, settings, options(**how, gradient_checkpointing=True))
    assert again["early_stopping"] == whole["early_stopping"] and not (cut / "checkpoint").exists()
    left, right = weights(tmp_path / "whole"), weights(cut)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    held_out = [row for row in solutions() if is_held_out(row)]
    assert step_measures(score_solutions(ProcessRewardModel.load(cut), held_out), 0.5)["brier"] == pytest.approx(
        whole["brier"], abs=1e-6
    )  # measured on a GPU, if any


@pytest.mark.parametrize("changed", [{"learning_rate": 1e-3}, {"lora": LoraSettings()}, {"labels": True}], ids=str)
def test_checkpoints_of_another_training_are_a_mistake(policy_folder, steps_file, tmp_path, changed):
    out, settings = tmp_path / "o", ProcessModelConfig(epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train_process(steps_file, policy_folder, out, settings, options(save_every=2, callbacks=(Killed(3),)))
    if changed.pop("labels", False):
        steps_file.write_text(
            "".join(json.dumps(json.loads(row) | {"labeller": "y"}) + "\n" for row in steps_file.read_text().splitlines())
        )
    with pytest.raises(UserError, match="of a training with other labels or settings"):
        train_process(steps_file, policy_folder, out, settings, options(save_every=2, **changed))


class Spoiled(TrainerCallback):
    """Puts a number into the gradient of some steps, and keeps the weights after each."""

    def __init__(self, steps, value):
        self.steps, self.value, self.after = steps, value, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            next(weight for weight in model.parameters() if weight.grad is not None).grad.view(-1)[0] = self.value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(torch.cat([weight.detach().flatten().clone() for weight in model.parameters()]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_moves_nothing_and_is_told_of(policy_folder, steps_file, tmp_path, capsys, value):
    spoiled = Spoiled({2, 3}, value)
    train_process(steps_file, policy_folder, tmp_path / "o", ProcessModelConfig(epochs=1), options(callbacks=(spoiled,)))
    equal = [torch.equal(one, other) for one, other in pairwise(spoiled.after)]
    assert equal[:4] == [False, True, True, False] and all(weights.isfinite().all() for weights in spoiled.after)
    assert capsys.readouterr().err.count("step 3 was skipped: its gradient was not finite (1 so far)") == 1


def test_ten_such_steps_in_a_row_end_the_training_with_a_message(policy_folder, steps_file, tmp_path):
    spoiled = Spoiled(range(2, 99), float("nan"))
    with pytest.raises(UserError, match="10 steps in a row, up to 12, had no finite gradient"):
        train_process(steps_file, policy_folder, tmp_path / "o", ProcessModelConfig(epochs=9), options(callbacks=(spoiled,), save_every=2))
    assert {folder.name for folder in (tmp_path / "o" / "checkpoint").glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-10"}
