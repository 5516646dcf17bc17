"""Faults that other PRM code has had, one by one: what must hold, and that it does not hold of a version with the fault planted."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback

from reward_models import data, forms, instruction, process, train, trainer
from reward_models.config import FormName, InstructionModelConfig, ProcessForm, ProcessModelConfig
from reward_models.data import StepColumns, collate_steps, step_columns
from reward_models.errors import UserError
from reward_models.instruction import Calibration, InstructionRewardModel
from reward_models.losses import IGNORE
from reward_models.model import build, load
from reward_models.process import SETTINGS, ProcessRewardModel
from reward_models.records import RankedItem, RankedList, SteppedSolution
from reward_models.train import TrainOptions, steps_loss, train_process
from tests.reward_models.conftest import byte_level, merging

MARK = "<|step|>"


@pytest.fixture(scope="module")
def prm(policy_folder):
    torch.manual_seed(0)
    model, tokenizer = build("process", policy_folder, separator=MARK)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return ProcessRewardModel(model, tokenizer, ProcessModelConfig())


def solution(*labels, steps=None, **fields):
    steps = steps or [f"step {place}" for place in range(len(labels))]
    return SteppedSolution(**{"problem_id": "p", "question": "q", "steps": steps, "labels": labels, "labeller": "x"} | fields)


def rows_of(prm, solutions, max_length=200):
    return data.step_rows(solutions, prm.tokenizer, separator=MARK, max_length=max_length, mask_after_first_error=False)


def refuted(holds, monkeypatch, *planted):
    """`holds` passes, and fails once each (module, name, fault) is in place."""
    holds()
    for owner, name, fault in planted:
        monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, ValueError)):
        holds()


def test_1_labels_one_column_before_what_is_read(prm, monkeypatch):
    def holds():
        (row,), _ = rows_of(prm, [solution(1, 0, 1)])
        assert [place for place, label in enumerate(row["labels"]) if label != IGNORE] == prm.columns("q", solution(1, 0, 1).steps).columns

    def shifted(*arguments):
        read = step_columns(*arguments)
        return dataclasses.replace(read, columns=[column - 1 for column in read.columns])

    refuted(holds, monkeypatch, (data, "step_columns", shifted))


def test_1_a_separator_that_training_alone_does_not_attend_to(prm, monkeypatch):
    """What is trained on is what is read: the same logits at the same columns, whatever else stands in the batch."""
    solutions = [solution(1, 1, 0, 1), solution(1)]
    rows, _ = rows_of(prm, solutions)

    def holds():
        batch = data.collate_steps(rows, 0)
        with torch.no_grad():
            logits = prm.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}).logits[..., 0]
        read = [score for one in prm.score(["q", "q"], [row.steps for row in solutions]) for score in one.scores]
        assert torch.sigmoid(logits[batch["labels"] != IGNORE]).tolist() == pytest.approx(read, abs=1e-5)

    def masked(rows, pad_id):
        batch = collate_steps(rows, pad_id)
        return batch | {"attention_mask": batch["attention_mask"] * (batch["labels"] == IGNORE)}

    refuted(holds, monkeypatch, (data, "collate_steps", masked))


@pytest.mark.parametrize("fault", ["2 labels as bool", "5 labels padded with the pad id"])
def test_2_and_5_a_batch_is_the_sum_of_its_rows(prm, monkeypatch, fault):
    """-100 as a bool is True; a pad id of 0 or 1 in its place is a label."""
    rows, _ = rows_of(prm, [solution(1, 0.5, 0), solution(1)])

    def holds():
        alone = sum(steps_loss(prm.model, data.collate_steps([row], 0), balance=(1.0, 1.0)).item() for row in rows)
        batch = data.collate_steps(rows, 0)
        assert batch["labels"].dtype == torch.float32 and set(batch["labels"].unique().tolist()) == {IGNORE, 0.0, 0.5, 1.0}
        assert steps_loss(prm.model, batch, balance=(1.0, 1.0)).item() == pytest.approx(alone, rel=1e-5)

    def faulty(rows, pad_id):
        batch = collate_steps(rows, pad_id)
        if fault[0] == "2":
            return batch | {"labels": batch["labels"].bool()}
        return batch | {"labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, pad_id)}

    refuted(holds, monkeypatch, (data, "collate_steps", faulty))


def test_3_a_separator_that_merges_or_stands_inside_a_step(monkeypatch):
    tokenizer = merging()
    steps = ["A.", "So\n\nB", "7"]

    def holds():
        read = data.step_columns(tokenizer, "q", steps, "<|end|>")
        assert len(read.columns) == len(steps)

    def joined(tokenizer, question, steps, separator):
        ids = tokenizer.encode(question + "\n" + "".join(step + "\n\n" for step in steps))
        end = tokenizer.encode("\n\n")[-1]
        return StepColumns(ids, 0, [place for place, token in enumerate(ids) if token == end])

    refuted(holds, monkeypatch, (data, "step_columns", joined))


def test_4_truncation_takes_labels(prm, monkeypatch):
    solutions = [solution(1, 1, 0), solution(1, *[1] * 30, 0)]

    def holds():
        rows, dropped = rows_of(prm, solutions, max_length=60)
        kept = [[label for label in row["labels"] if label != IGNORE] for row in rows]
        assert kept == [[1, 1, 0]] and dropped == {"too_long": 1}

    def truncated(*arguments):
        read = step_columns(*arguments)
        return StepColumns(read.ids[:60], read.start, [column for column in read.columns if column < 60])

    refuted(holds, monkeypatch, (data, "step_columns", truncated))


def test_6_a_mask_by_token_id(prm, monkeypatch):
    """The id that pads may stand in a text."""
    question = "Ann" + prm.tokenizer.pad_token * 2 + "3 pens"
    read, forward = prm.columns(question, ["a", "b"]), prm.model.forward
    assert prm.tokenizer.pad_token_id in read.ids
    with torch.no_grad():
        expected = torch.sigmoid(prm.model(torch.tensor([read.ids])).logits[0, read.columns, 0]).tolist()

    def holds():
        assert prm.score([question, "q " * 40], [["a", "b"], ["c"]])[0].scores == pytest.approx(expected, abs=1e-5)

    def by_id(input_ids, **rest):
        return forward(input_ids=input_ids, **rest | {"attention_mask": (input_ids != prm.tokenizer.pad_token_id).long()})

    refuted(holds, monkeypatch, (prm.model, "forward", by_id))


def test_7_a_column_counted_back_from_the_end(monkeypatch):
    """A template may end its turns by one token or by two."""
    tokenizer = byte_level()
    turn = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}TAIL{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})

    def holds():
        for tail in ("<|end|>", "<|end|>\n"):
            tokenizer.chat_template = turn.replace("TAIL", tail)
            read = forms.form_columns(tokenizer, ProcessForm(form="rlhflow"), "q", ["a", "b"])
            assert [tokenizer.convert_ids_to_tokens(read.ids[column]) for column in read.columns] == ["<|assistant|>"] * 2

    def counted_back(tokenizer, form, question, steps):
        conversation, columns = [], []
        for place, step in enumerate(steps):
            conversation += [{"role": "user", "content": step if place else f"{question} {step}"}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False))
            columns.append(len(ids) - 3)
        return StepColumns(ids, 0, columns)

    refuted(holds, monkeypatch, (forms, "form_columns", counted_back))


def test_8_question_and_first_step_glued(prm, monkeypatch):
    def holds():
        read = data.step_columns(prm.tokenizer, "Which is more, 9.9 or 9.11", ["11 is", "#### 9.9"], MARK)
        assert prm.tokenizer.decode(read.ids) == f"Which is more, 9.9 or 9.11\n11 is\n{MARK}#### 9.9\n{MARK}"

    def no_break(tokenizer, question, steps, separator):
        read = step_columns(tokenizer, question, steps, separator)
        return StepColumns([*read.ids[: read.start - 1], *read.ids[read.start :]], read.start - 1, [column - 1 for column in read.columns])

    refuted(holds, monkeypatch, (data, "step_columns", no_break))


def test_9_left_padding_without_position_ids(tmp_path, monkeypatch):
    """With learned positions: explicit ones give a row the same scores wherever its padding stands."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = build("process", tmp_path, separator=MARK)
    for weight in (model.classifier.weight, model.transformer.wpe.weight):
        torch.nn.init.normal_(weight, std=0.5)
    prm = ProcessRewardModel(model, tokenizer, ProcessModelConfig(max_length=120))

    def left(rows, pad_id):
        width = max(map(len, rows)) + 5
        turned = {name: tensor.flip(1) for name, tensor in data.pad([row[::-1] for row in rows], pad_id).items()}
        batch = {name: torch.nn.functional.pad(tensor, (width - tensor.shape[1], 0)) for name, tensor in turned.items()}
        return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}

    def holds():
        read = prm.columns("q", ["a", "b"])
        batch = left([read.ids], 0)
        with torch.no_grad():
            logits = prm.model(**batch).logits[0, [column + 5 for column in read.columns], 0]
        assert torch.sigmoid(logits).tolist() == pytest.approx(prm.score(["q"], [["a", "b"]])[0].scores, abs=1e-5)

    def without(*inputs, position_ids=None, **batch):
        return forward(*inputs, **batch)

    forward = model.forward
    refuted(holds, monkeypatch, (model, "forward", without))


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))


def files(tmp_path):
    rows = [
        solution(*(1, 0, 1, 1, 0)[: 1 + place % 5], problem_id=f"{split} {place}", question=f"{split} {place}?", split=split)
        for split, count in (("train", 6), ("held_out", 2))
        for place in range(count)
    ]
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def test_10_a_mean_per_micro_batch(policy_folder, tmp_path, monkeypatch):
    file = files(tmp_path)

    def holds():
        found = []
        for size in (6, 1):
            gradients = Gradients()
            options = TrainOptions(learning_rate=1e-9, batch_size=6, micro_batch_size=size, max_grad_norm=1e9, callbacks=(gradients,))
            settings = ProcessModelConfig(epochs=1, mask_after_first_error=False)
            train_process(file, policy_folder, tmp_path / "out", settings, options)
            found += gradients.seen
        assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()

    def by_micro_batch(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.loss_sum(model, inputs) / (inputs["labels"] != IGNORE).sum() / self.args.gradient_accumulation_steps

    refuted(holds, monkeypatch, (trainer._GlobalCountTrainer, "compute_loss", by_micro_batch))


def test_11_a_threshold_chosen_on_what_it_is_judged_on(policy_folder, tmp_path, monkeypatch):
    file, seen, chosen = files(tmp_path), [], train.fit_threshold
    monkeypatch.setattr(train, "fit_threshold", lambda model, rows: seen.append([row.split for row in rows]) or chosen(model, rows))

    def holds():
        train_process(file, policy_folder, tmp_path / "out", ProcessModelConfig(epochs=1), TrainOptions(batch_size=6))
        assert set(seen[-1]) == {"train"}

    refuted(holds, monkeypatch, (train, "_split", lambda rows, path: (rows, rows)))


def test_12_a_head_that_was_not_saved_is_drawn_anew(prm, tmp_path, monkeypatch):
    """As an adapter is saved without it: such a folder scores as what was saved, or does not load."""
    trunk = prm.model.base_model
    trunk.save_pretrained(tmp_path)
    prm.tokenizer.save_pretrained(tmp_path)
    (tmp_path / SETTINGS).write_text(ProcessModelConfig().model_dump_json())
    assert AutoModel.from_pretrained(tmp_path) is not None and AutoTokenizer.from_pretrained(tmp_path) is not None

    def holds():
        try:
            loaded = ProcessRewardModel.load(tmp_path)
        except UserError as error:
            assert "has no weights for score" in str(error)
        else:
            assert loaded.score(["q"], [["a"]])[0].scores == pytest.approx(prm.score(["q"], [["a"]])[0].scores, abs=1e-5)

    refuted(holds, monkeypatch, (process, "load", lambda *arguments, trained: load(*arguments)))


# ------------------------------------------------------ what else users of reward models fell into, by its number in the list of traps
# Traps 1 to 5 and 7 are faults 1, 2, 3, 4, 7 and 6 above; 10, 15, 16 and 17 are with the scored files and with the served models.


def test_trap_3_labels_are_not_cut_to_the_columns_that_were_found(prm, monkeypatch):
    def found_fewer(*arguments):
        read = step_columns(*arguments)
        return dataclasses.replace(read, columns=read.columns[:-1])

    monkeypatch.setattr(data, "step_columns", found_fewer)
    with pytest.raises(ValueError, match="zip"):
        rows_of(prm, [solution(1, 1, 0)])


@pytest.fixture(scope="module")
def irm(policy_folder):
    torch.manual_seed(0)
    model, tokenizer = build("instruction", policy_folder)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return InstructionRewardModel(model, tokenizer, Calibration((0.0, 0.5), 1.0, 0.05, 64))


def test_trap_6_an_instruction_is_read_at_eos_where_the_attention_ends(irm, monkeypatch):
    """Not at padding, nor at the token before: then texts that end alike would score alike."""
    texts = ["Ann has 3 pens.", "Ann has 3 pens. How many have Ann and Ben?"]
    ids = [data.instruction_ids(irm.tokenizer, text, 64) for text in texts]
    batch = data.pad(ids, irm.tokenizer.pad_token_id)

    def holds():
        with torch.no_grad():
            hidden = irm.model.base_model(**batch).last_hidden_state
            last = hidden[torch.arange(len(ids)), batch["attention_mask"].sum(1) - 1]
            expected = irm.model.score(last)[:, 0].tolist()
        assert instruction.score_texts(irm.model, irm.tokenizer, texts, 64) == pytest.approx(expected, abs=1e-5)

    refuted(holds, monkeypatch, (irm.model.config, "pad_token_id", irm.tokenizer.eos_token_id))


def test_trap_8_an_instruction_is_scored_as_it_was_trained_on(irm, monkeypatch):
    texts = ("Ann has 3 pens.", "naïve — 数学")
    row = RankedList(seed_id="a", labeller="x", items=[RankedItem(text=text, rank=rank) for rank, text in enumerate(texts)])
    (trained,) = data.instruction_rows([row], irm.tokenizer, max_length=64, anchors=0, seed=0)

    def holds():
        seen, score_ids = [], instruction.score_ids
        monkeypatch.setattr(instruction, "score_ids", lambda model, rows, *rest: seen.extend(rows) or score_ids(model, rows, *rest))
        instruction.score_texts(irm.model, irm.tokenizer, texts, 64)
        assert seen == trained["items"]

    def without_eos(tokenizer, text, max_length):
        return tokenizer.encode(text, add_special_tokens=False)[:max_length]

    refuted(holds, monkeypatch, (instruction, "instruction_ids", without_eos))


def test_trap_8_a_text_begins_once(monkeypatch):
    """With a tokenizer and a template that both write BOS."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "additional_special_tokens": ["<|user|>", "<|assistant|>", "<extra_0>"]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    begin = ("<|begin|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[begin])
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id

    def holds():
        read = [forms.form_columns(tokenizer, ProcessForm(form=form), "q", ["a", "b"]) for form in get_args(FormName)]
        read.append(data.step_columns(tokenizer, "q", ["a", "b"], "<extra_0>"))
        for one in read:
            assert one.ids[0] == tokenizer.bos_token_id and one.ids.count(tokenizer.bos_token_id) == 1

    refuted(holds, monkeypatch, (forms, "_ids", lambda tokenizer, text: tokenizer.encode(text)))


def test_trap_9_a_product_of_scores_is_not_more_than_either(prm, irm, monkeypatch):
    """Whatever the logits: two bad scores, each below zero, would make a good one."""
    questions, steps = ["Ann has 3 pens.", "7?", "naïve — 数学"], [["a", "b"], ["Ben 3+4=7"], ["c", "So", "d"]]
    for model in (prm.model, irm.model):
        monkeypatch.setattr(model.score, "forward", lambda hidden, score=model.score: hidden @ score.weight.T * 1e3)

    def holds():
        parts = zip(
            InstructionRewardModel(irm.model, irm.tokenizer, irm.calibration).score(questions), prm.score(questions, steps), strict=True
        )
        for whole, one in parts:
            least = process.aggregate(one.scores)
            assert 0.05 <= whole <= 1 and 0 <= least <= 1 and whole * least <= min(whole, least)

    refuted(holds, monkeypatch, (torch, "sigmoid", lambda logits: logits))
    monkeypatch.undo()
    refuted(holds, monkeypatch, (Calibration, "win_rate", lambda self, scores: list(scores)))


def test_trap_18_the_scale_is_fitted_on_held_out_lists_judged_on_others_and_stored(policy_folder, tmp_path, monkeypatch):
    lists = [
        RankedList(
            seed_id=str(n), labeller="x", split="held_out" if n < 4 else "train",
            items=[RankedItem(text=f"Ann {n} {rank}", rank=rank) for rank in range(2)],
        )
        for n in range(10)
    ]  # fmt: skip
    file = tmp_path / "lists.jsonl"
    file.write_text("".join(row.model_dump_json() + "\n" for row in lists))
    fitted, judged = [], []
    differences, evaluate = train._differences, train.evaluate_instruction
    monkeypatch.setattr(train, "_differences", lambda model, rows: fitted.append(rows) or differences(model, rows))
    monkeypatch.setattr(train, "evaluate_instruction", lambda model, rows: judged.append(rows) or evaluate(model, rows))

    def holds():
        settings = InstructionModelConfig(epochs=1, references=8)
        result = train.train_instruction(file, policy_folder, tmp_path / "irm", settings, TrainOptions(batch_size=4))
        assert {row.split for row in fitted[-1]} == {"held_out"}
        assert not {row.seed_id for row in fitted[-1]} & {row.seed_id for row in judged[-1]}
        stored = InstructionRewardModel.load(tmp_path / "irm").calibration
        assert stored.slope == result["slope"] and len(stored.references) == 8

    refuted(holds, monkeypatch, (train, "_split", lambda rows, path: (rows, rows)))
