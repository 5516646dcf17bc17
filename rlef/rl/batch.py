"""The rollouts of one iteration, and how rows become right-padded micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch


@dataclass
class RolloutBatch:
    """Rows of one rank. B rows, T the longest answer; every (B, T) tensor is fp32 and means nothing where `mask` is 0.

    Token t of an answer has its log-probability and the value of the state BEFORE it at column prompt + t - 1 of the sequence.
    """

    prompts: list[tuple[int, ...]]  # B
    answers: list[tuple[int, ...]]  # B, the sampled tokens, EOS included
    rows: torch.Tensor  # (B,) index of each row in the whole iteration, over all ranks
    mask: torch.Tensor  # (B, T) 1 on sampled tokens, EOS included; made from lengths, never from token ids (pad may equal EOS)
    rollout_logprobs: torch.Tensor  # (B, T) by the sampler, after temperature
    old_logprobs: torch.Tensor  # (B, T) by the trainer's own forward before the first update
    ref_logprobs: torch.Tensor  # (B, T)
    values: torch.Tensor  # (B, T)
    rewards: torch.Tensor  # (B, T) score at its slots minus beta * k1
    advantages: torch.Tensor  # (B, T)
    returns: torch.Tensor  # (B, T)

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        rollout_logprobs: Sequence[Sequence[float]],
        rows: Sequence[int],
    ) -> RolloutBatch:
        """Pad lists to tensors; what is computed later starts at 0."""
        lengths = torch.tensor([len(answer) for answer in answers])
        width = int(lengths.max()) if len(answers) else 0
        mask = (torch.arange(width)[None, :] < lengths[:, None]).float()
        sampled = torch.zeros(len(answers), width)
        for row, values in enumerate(rollout_logprobs):
            sampled[row, : len(values)] = torch.tensor(list(values))
        blank = {name: torch.zeros_like(mask) for name in ("old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")}
        return cls(
            prompts=[tuple(ids) for ids in prompts],
            answers=[tuple(ids) for ids in answers],
            rows=torch.tensor(list(rows), dtype=torch.long),
            mask=mask,
            rollout_logprobs=sampled,
            **blank,
        )

    def select(self, index: Sequence[int]) -> RolloutBatch:
        """The rows at `index`, cut to their own longest answer."""
        width = max((len(self.answers[row]) for row in index), default=0)
        picked = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "rows":
                picked[field.name] = value[list(index)]
            elif isinstance(value, list):
                picked[field.name] = [value[row] for row in index]
            else:
                picked[field.name] = value[list(index), :width]
        return RolloutBatch(**picked)


def by_length(batch: RolloutBatch, index: Sequence[int], size: int) -> Iterator[list[int]]:
    """Micro-batches of `size` rows, alike in length. Under a global token count the order changes no gradient, only the padding."""
    ordered = sorted(index, key=lambda row: (len(batch.prompts[row]) + len(batch.answers[row]), row))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@dataclass(frozen=True)
class Columns:
    """Sequences prompt + answer, right-padded to L, and where the answers' states lie in them. N = sum of answer lengths."""

    input_ids: torch.Tensor  # (b, L)
    attention_mask: torch.Tensor  # (b, L)
    position_ids: torch.Tensor  # (b, L)
    row: torch.Tensor  # (N,) row of each answer token
    state: torch.Tensor  # (N,) column of the state before it
    token: torch.Tensor  # (N,) the token
    slot: torch.Tensor  # (N,) its index t in the answer

    def spread(self, flat: torch.Tensor, width: int) -> torch.Tensor:
        """(N,) per answer token -> (b, width), zero where there is no token."""
        out = flat.new_zeros(self.input_ids.shape[0], width)
        return out.index_put((self.row, self.slot), flat)


def columns(batch: RolloutBatch, pad_id: int, device: torch.device) -> Columns:
    """Lay out all rows of `batch`."""
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(batch.prompts, batch.answers, strict=True)]
    count, width = len(lengths), max(lengths, default=0)
    ids = torch.full((count, width), pad_id)
    attention = torch.zeros(count, width, dtype=torch.long)
    row, state, token, slot = [], [], [], []
    for index, (prompt, answer) in enumerate(zip(batch.prompts, batch.answers, strict=True)):
        ids[index, : lengths[index]] = torch.tensor(prompt + answer)
        attention[index, : lengths[index]] = 1
        row += [index] * len(answer)
        state += range(len(prompt) - 1, lengths[index] - 1)
        token += answer
        slot += range(len(answer))
    positions = torch.arange(width).expand(count, width)
    flat = [torch.tensor(values, dtype=torch.long) for values in (row, state, token, slot)]
    moved = [tensor.to(device) for tensor in (ids, attention, positions, *flat)]
    return Columns(*moved)
