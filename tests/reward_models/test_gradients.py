"""8: the gradient of an optimiser step depends neither on micro-batches, nor on order or padding; in double precision."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from reward_models.config import InstructionModelConfig
from reward_models.data import collate_lists, collate_steps, instruction_rows, step_rows, step_trees
from reward_models.losses import IGNORE
from reward_models.model import build
from reward_models.records import RankedItem, RankedList, SteppedSolution
from reward_models.train import lists_loss, steps_loss

SOLUTIONS = [
    SteppedSolution(problem_id=str(n), question=f"{n // 2}?", steps=("Ben 3+4=7",) * (n // 2) + ("So " * n,), labels=(1.0,) * (n // 2) + (n / 7,), labeller="x")
    for n in range(8)
]  # fmt: skip
LISTS = [
    RankedList(
        seed_id=str(n), labeller="x",
        items=[RankedItem(text=f"Ann {n} " * (1 + rank), rank=0 if n == 3 else rank // (1 + n % 2), scores={"precision": 1 - rank / 9}) for rank in range(2 + n % 4)],
    )
    for n in range(8)
]  # fmt: skip
NAMES = ["prm", "prm trees", "prm language", "irm pairwise", "irm listwise", "irm centred"]


@pytest.fixture(scope="module", params=NAMES)
def case(request, policy_folder):
    """(model, rows, collate, loss that is a sum): one row of each kind has nothing to judge."""
    kind, _, how = request.param.partition(" ")
    model, tokenizer = build("process" if kind == "prm" else "instruction", policy_folder, separator="<|step|>" if kind == "prm" else None)
    model = model.double()
    torch.nn.init.normal_(model.score.weight, std=0.5)
    if kind == "irm":
        settings = InstructionModelConfig(loss="listwise" if how == "listwise" else "pairwise")
        data = instruction_rows(LISTS, tokenizer, max_length=64, anchors=0 if how == "centred" else 2, seed=0)
        assert any(len(set(row["ranks"])) == 1 for row in data)
        return model, data, partial(collate_lists, pad_id=tokenizer.pad_token_id), partial(lists_loss, settings=settings)
    rows, _ = step_rows(SOLUTIONS, tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=False)
    data = step_trees(rows, 40) if how == "trees" else rows
    data[2] = data[2] | {"labels": [IGNORE] * data[2]["length"]}
    head = torch.randn(len(tokenizer), model.config.hidden_size, generator=torch.Generator().manual_seed(0)) if how == "language" else None
    loss = partial(steps_loss, balance=(1.3, 0.7), head=head, language_weight=0.7)
    return model, data, partial(collate_steps, pad_id=tokenizer.pad_token_id), loss


def gradient(case, size, order=None, beside=None):
    """Of the mean over all rows, from micro-batches of `size`; `beside`: a row that each is padded with, and that is then taken out."""
    model, data, collate, loss = case
    rows = data if order is None else [data[place] for place in order]
    count = (collate(rows)["labels"] != IGNORE).sum()
    model.zero_grad()
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        batch = collate(piece)
        if beside is not None:
            wide, few = collate([*piece, beside]), len(batch["input_ids"])
            assert wide["input_ids"].shape[1] > batch["input_ids"].shape[1]
            batch = {name: value[: few if len(value) == len(wide["input_ids"]) else len(piece)] for name, value in wide.items()}
        (loss(model, batch) / count).backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def test_8_micro_batches_order_and_padding_change_nothing(case):
    data = case[1]
    whole = gradient(case, len(data))
    assert whole.dtype == torch.float64 and whole.abs().max() > 1e-4
    for size in (1, 2, 4, 8):
        order = random.Random(size).sample(range(len(data)), len(data))
        for found in (gradient(case, size), gradient(case, size, order)):
            assert (found - whole).abs().max() < 1e-10, size
    longest = max(data, key=lambda row: row["length"])
    if "items" in longest:
        beside = longest | {"items": [[*ids, *ids] for ids in [max(longest["items"], key=len)] * len(longest["items"])]}
    else:
        doubled = ("input_ids", "labels", "language", "parents", "position_ids")
        beside = longest | {name: longest[name] * 2 for name in doubled if name in longest} | {"length": 2 * longest["length"]}
    for size in (2, 8):
        assert (gradient(case, size, beside=beside) - whole).abs().max() < 1e-10
