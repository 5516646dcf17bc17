"""The gradient of each optimiser step of the reward models' trainer, in double precision, on one rank or several; argv: policy, folder."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from reward_models.config import InstructionModelConfig
from reward_models.data import collate_lists, collate_steps, instruction_rows, step_rows
from reward_models.losses import IGNORE
from reward_models.model import build
from reward_models.records import RankedItem, RankedList, SteppedSolution
from reward_models.train import lists_loss, steps_loss
from reward_models.trainer import _GlobalCountTrainer

STEP_ROWS = 8
KINDS = ("prm", "irm pairwise", "irm listwise")


def case(kind, policy):
    """(model, rows, collate, loss): the rows of one step, of very unequal counts; the shorter half has nothing to judge."""
    torch.manual_seed(0)
    model, tokenizer = build("process" if kind == "prm" else "instruction", policy, separator="<|step|>" if kind == "prm" else None)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    if kind == "prm":
        solutions = [
            SteppedSolution(problem_id=str(n), question=f"{n}?", steps=("Ben 3+4=7",) * (1 + n), labels=((n + k) % 2 for k in range(1 + n)), labeller="x")
            for n in range(STEP_ROWS)
        ]  # fmt: skip
        rows, _ = step_rows(solutions, tokenizer, separator="<|step|>", max_length=256, mask_after_first_error=False)
        short = sorted(rows, key=lambda row: row["length"])[: STEP_ROWS // 2]
        rows = [row | {"labels": [IGNORE] * row["length"]} if row in short else row for row in rows]
        return model.double(), rows, partial(collate_steps, pad_id=0), partial(steps_loss, balance=(1.3, 0.7))
    lists = [
        RankedList(
            seed_id=str(n), labeller="x",
            items=[RankedItem(text=f"Ann {k} " * (1 + n), rank=k if n >= STEP_ROWS // 2 else 0, scores={"precision": 1 - k / 9}) for k in range(2 + n % 5)],
        )
        for n in range(STEP_ROWS)
    ]  # fmt: skip
    settings = InstructionModelConfig(loss=kind.split()[1], cross_seed_weight=0.0)
    rows = instruction_rows(lists, tokenizer, max_length=128, anchors=0, seed=0)
    return model.double(), rows, partial(collate_lists, pad_id=tokenizer.pad_token_id), partial(lists_loss, settings=settings)


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]).numpy())


def gradients(kind, policy, micro_batch, world, left_out=0):
    """(optimiser steps, weights), as the mean over all ranks, and the counts of judged steps or of lists of each forward of this rank.

    `left_out`: so many rows fewer than a step has, which ranks cannot share evenly.
    """
    model, rows, collate, loss = case(kind, policy)
    rows = rows[left_out:]
    counts, seen = [], Gradients()

    def counted(model, inputs):
        counts.append(int((inputs["labels"] != IGNORE).sum()))
        return loss(model, inputs)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=2, learning_rate=1e-9, per_device_train_batch_size=micro_batch, max_grad_norm=1e9, report_to=[],
            gradient_accumulation_steps=STEP_ROWS // (micro_batch * world), use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
            save_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = _GlobalCountTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collate, loss_sum=counted, callbacks=[seen]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return np.stack(seen.seen), counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    policy, folder = sys.argv[1:3]
    for kind in KINDS:
        for micro_batch in (4, 2):
            found, counts = gradients(kind, policy, micro_batch, 2)
            rank = torch.distributed.get_rank()
            np.savez(Path(folder, f"{kind} {micro_batch} {rank}.npz"), gradients=found, counts=counts)
        uneven, counts = gradients(kind, policy, 2, 2, left_out=3)
        np.savez(Path(folder, f"{kind} uneven {rank}.npz"), gradients=uneven, counts=counts)
