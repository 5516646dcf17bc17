"""Preference rows as ranked lists: RewardBench (arXiv 2403.13787), RewardBench 2 (2506.01937), TRL's preference pairs.

An instruction model reads instructions alone: what it scores are the texts `chosen` and `rejected` themselves, each by itself; `prompt`
only says which rows belong to one seed. Rows whose two texts are answers measure how far the model judges any text, not what it is for.
"""

from __future__ import annotations

import json
from typing import Any

from reward_models.formats.base import Row
from reward_models.records import RankedItem, RankedList, problem_id


def is_preference(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


def read_preference(row: Row) -> list[RankedList]:
    """All chosen texts at rank 0, all rejected ones at rank 1; `subset` is their kind. Raises ValueError where there is no text."""
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    subset = row.get("subset")
    items = [RankedItem(text=text, rank=0) for text in chosen]
    items += [RankedItem(text=text, rank=1, kind=subset if isinstance(subset, str) else None) for text in rejected]
    return [RankedList(seed_id=problem_id(_prompt(row) or chosen[0]), items=tuple(items), labeller="preference")]


def _prompt(row: Row) -> str | None:
    """What was asked: a text, messages, or the messages of `chosen` before its last."""
    prompt: Any = row.get("prompt")
    if prompt is None and isinstance(row["chosen"], list) and isinstance(row["chosen"][0], dict):
        prompt = row["chosen"][:-1]
    if not prompt:
        return None
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _texts(row: Row, key: str) -> list[str]:
    """A text, several, or the last message of a conversation."""
    value: Any = row.get(key)
    texts = value if isinstance(value, list) else [value]
    if texts and all(isinstance(one, dict) for one in texts):
        texts = [texts[-1].get("content")]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{key} is no text, list of texts or list of messages")
    return texts
