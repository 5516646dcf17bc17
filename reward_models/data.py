"""From label rows to tensors: token ids by list concatenation, the columns of step ends remembered, right-padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reward_models.losses import IGNORE, masked_after_first_error
from reward_models.model import Tokenizer
from reward_models.records import RankedList, SteppedSolution

ALIKE = 0.8  # least length of a row in a scored batch, of its longest


def instruction_ids(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """The instruction alone, EOS appended as an id. A longer one keeps its beginning and its EOS."""
    return [*tokenizer.encode(text, add_special_tokens=False)[: max_length - 1], int(tokenizer.eos_token_id)]


@dataclass(frozen=True)
class StepColumns:
    """A solution as the PRM reads it: question, then each step and the separator at which it is judged."""

    ids: list[int]
    start: int  # of the first step, or of the chat turn that holds it and the question
    columns: list[int]  # where each step is judged


def step_columns(tokenizer: Tokenizer, question: str, steps: Sequence[str], separator: str) -> StepColumns:
    """Never tokenises a joined string: a separator inside a step, or one that merges with its neighbours, would shift every label."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
    else:
        text = question + "\n"
    texts = [str(text), *(step + "\n" for step in steps)]
    pieces = tokenizer(texts, add_special_tokens=False)["input_ids"]
    mark = tokenizer.convert_tokens_to_ids(separator)
    # A step that spells the separator out must not be judged inside.
    return marked(pieces[0], [[token for token in piece if token != mark] for piece in pieces[1:]], [mark])


def marked(opening: Sequence[int], steps: Sequence[Sequence[int]], mark: Sequence[int], *, before: bool = False) -> StepColumns:
    """The one place where steps get their columns: behind each step's ids stands `mark`, and the step is judged at the mark's last id;
    with `before` at the id in front of the mark, which the model is to predict."""
    ids, columns = list(opening), []
    for step in steps:
        ids += step
        columns.append(len(ids) - 1 if before else len(ids) + len(mark) - 1)
        ids += mark
    return StepColumns(ids, len(opening), columns)


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and position_ids."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    positions = torch.arange(width).expand(len(rows), width).contiguous()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in pieces of at most `size`, alike in length, longest first (a memory shortage shows at once).

    A piece ends early where the next row is far shorter than its first: little is padded even where there are few rows.
    """
    piece: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if piece and (len(piece) == size or lengths[index] < ALIKE * lengths[piece[0]]):
            yield piece
            piece = []
        piece.append(index)
    if piece:
        yield piece


class SortedSteps(torch.utils.data.Sampler[int]):
    """All rows in random order, those of one optimiser step sorted by length: its micro-batches pad little, and under a loss that is
    normalised over the whole step nothing else changes. `step_rows`: rows of an optimiser step over all ranks. The last `blank` rows are
    always in the last step.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, seed: int, blank: int = 0) -> None:
        self.lengths, self.step_rows, self.seed, self.epoch, self.blank = list(lengths), step_rows, seed, 0, blank

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self) - self.blank))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        order += range(len(order), len(self))
        for start in range(0, len(order), self.step_rows):
            yield from sorted(order[start : start + self.step_rows], key=lambda row: self.lengths[row])


def blanks(rows: Sequence[dict[str, Any]], multiple: int) -> list[dict[str, Any]]:
    """Rows with nothing to judge that fill `rows` up to a multiple: where ranks would get unequal numbers of micro-batches, accelerate
    repeats rows, and the last step of an epoch would have another gradient than on one rank."""
    return [min(rows, key=lambda row: row["length"]) | {"blank": True}] * (-len(rows) % multiple)


# ---------------------------------------------------------------------------------------- training rows


def instruction_rows(
    lists: Sequence[RankedList], tokenizer: Tokenizer, *, max_length: int, anchors: int, seed: int
) -> list[dict[str, Any]]:
    """One row a list: its items, and `anchors` items of other seeds to compare them with (where all items carry scores)."""
    rng = random.Random(seed)
    rows = []
    scored = all(item.scores for row in lists for item in row.items)
    for place, row in enumerate(lists):
        others = []
        if anchors and scored and len(lists) > 1:
            for _ in range(anchors):
                other = lists[(place + rng.randrange(1, len(lists))) % len(lists)]
                others.append(rng.choice(other.items))
        items = [*row.items, *others]
        ids = [instruction_ids(tokenizer, item.text, max_length) for item in items]
        rows.append(
            {
                "items": ids,
                "ranks": [item.rank for item in row.items],
                "quality": [sum(item.scores.values()) if scored else 0.0 for item in items],
                "length": sum(map(len, ids)),
            }
        )
    return rows


def collate_lists(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """All items of all lists in one batch. `labels` has one entry a list, by which the trainer counts them; IGNORE for a blank row."""
    batch: dict[str, Any] = pad([ids for row in rows for ids in row["items"]], pad_id)
    batch["labels"] = torch.tensor([IGNORE if row.get("blank") else 1.0 for row in rows])
    batch["sizes"] = [(len(row["ranks"]), len(row["items"])) for row in rows]
    batch["ranks"] = [torch.tensor(row["ranks"]) for row in rows]
    batch["quality"] = [torch.tensor(row["quality"]) for row in rows]
    return batch


def step_rows(
    solutions: Sequence[SteppedSolution],
    tokenizer: Tokenizer,
    *,
    separator: str,
    max_length: int,
    mask_after_first_error: bool,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows with ids, a label a column and, as `language`, weights of the tokens of right steps, which sum to 1 a step; and how many rows
    were dropped, by reason. No label is lost: what is cut stands behind the last one, where the causal trunk cannot look from any."""
    rows, dropped = [], {"too_long": 0, "no_label": 0}
    for solution in solutions:
        labels = list(solution.labels)
        if mask_after_first_error:
            labels = masked_after_first_error(labels)
        if all(label is None for label in labels):
            dropped["no_label"] += 1
            continue
        read = step_columns(tokenizer, solution.question, solution.steps, separator)
        if len(read.ids) > max_length:
            dropped["too_long"] += 1
            continue
        values, weights = [IGNORE] * len(read.ids), [0.0] * len(read.ids)
        start = read.start
        for column, label in zip(read.columns, labels, strict=True):
            values[column] = IGNORE if label is None else float(label)
            if label is not None and label > 0.5:
                weights[start:column] = [1 / (column - start)] * (column - start)
            start = column + 1
        end = max(column for column in read.columns if values[column] != IGNORE) + 1
        row = {"question": solution.question, "input_ids": read.ids[:end], "labels": values[:end], "language": weights[:end]}
        rows.append(row | {"length": end})
    return rows, {reason: count for reason, count in dropped.items() if count}


def step_trees(rows: Sequence[dict[str, Any]], max_length: int) -> list[dict[str, Any]]:
    """The rows of each question merged into trees of at most `max_length` tokens in which a common beginning stands once.

    Every token sees its own beginning alone (`parents`: the token before it, -1 for none), so each step's logit is that of its row, at
    a fraction of the work. A step that several rows share is judged once, by the mean of its labels.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["question"], []).append(row)
    return [tree.row() for group in groups.values() for tree in _grown(group, max_length)]


def _grown(group: Sequence[dict[str, Any]], max_length: int) -> Iterator[_Tree]:
    tree = _Tree()
    for row in group:
        if tree.ids and len(tree.ids) + tree.added_by(row["input_ids"]) > max_length:
            yield tree
            tree = _Tree()
        tree.add(row)
    yield tree


class _Tree:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.positions: list[int] = []
        self.labels: list[list[float]] = []
        self.language: list[float] = []
        self.places: dict[tuple[int, int], int] = {}  # (parent, token) -> its place

    def added_by(self, ids: Sequence[int]) -> int:
        """How many of these tokens are new."""
        parent = -1
        for known, token in enumerate(ids):
            if (parent, token) not in self.places:
                return len(ids) - known
            parent = self.places[parent, token]
        return 0

    def add(self, row: dict[str, Any]) -> None:
        parent = -1
        for token, label, weight in zip(row["input_ids"], row["labels"], row["language"], strict=True):
            place = self.places.setdefault((parent, token), len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self.parents.append(parent)
                self.positions.append(self.positions[parent] + 1 if parent >= 0 else 0)
                self.labels.append([])
                self.language.append(0.0)
            if label != IGNORE:
                self.labels[place].append(label)
            self.language[place] = max(self.language[place], weight)  # a wrong step may begin like a right one
            parent = place

    def row(self) -> dict[str, Any]:
        labels = [sum(found) / len(found) if found else IGNORE for found in self.labels]
        return {
            "input_ids": self.ids, "parents": self.parents, "position_ids": self.positions,
            "labels": labels, "language": self.language, "length": len(self.ids),
        }  # fmt: skip


def collate_steps(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Labels are padded with IGNORE, never with a token id. Trees get a mask (B, 1, L, L) of what each token sees, and their parents."""
    batch = pad([row["input_ids"] for row in rows], pad_id)
    labels = torch.full(batch["input_ids"].shape, IGNORE)
    language = torch.zeros(batch["input_ids"].shape)
    for index, row in enumerate(rows):
        if row.get("blank"):
            continue
        labels[index, : len(row["labels"])] = torch.tensor(row["labels"])
        language[index, : len(row["language"])] = torch.tensor(row["language"])
    if "parents" in rows[0]:
        width = labels.shape[1]
        parents = torch.zeros(labels.shape, dtype=torch.long)
        seen = np.zeros((len(rows), width, width), dtype=bool)
        seen[:, np.arange(width), np.arange(width)] = True  # padding sees itself: a row that sees nothing would be NaN
        for index, row in enumerate(rows):
            for place, parent in enumerate(row["parents"]):
                if parent >= 0:
                    seen[index, place] |= seen[index, parent]
            parents[index, : row["length"]] = torch.tensor(row["parents"]).clamp(min=0)
            batch["position_ids"][index, : row["length"]] = torch.tensor(row["position_ids"])
        batch |= {"attention_mask": torch.from_numpy(seen)[:, None], "parents": parents}
    return batch | {"labels": labels, "language": language}
