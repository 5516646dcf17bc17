"""The rollouts of one iteration, and how rows become right-padded micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import pad

LARGE, MOST_PADDING = 4096, 0.1  # slots that keep a device busy; share of them


@dataclass
class RolloutBatch:
    """Rows of one rank. B rows, T the longest answer; every (B, T) tensor is fp32 and means nothing where `mask` is 0.

    Token t of an answer has its log-probability and the value of the state BEFORE it at column prompt + t - 1 of the sequence.
    """

    prompts: list[tuple[int, ...]]  # B
    answers: list[tuple[int, ...]]  # B, the sampled tokens, EOS included
    rows: torch.Tensor  # (B,) index of each row in the whole iteration, over all ranks
    mask: torch.Tensor  # (B, T) 1 on sampled tokens, EOS included; made from lengths, never from token ids (pad may equal EOS); PPO
    # puts it to 0 on whole rows that could not be judged, and with it their part in every loss, count and mean
    rollout_logprobs: torch.Tensor  # (B, T) by the sampler, after temperature
    old_logprobs: torch.Tensor  # (B, T) by the trainer's own forward before the first update
    ref_logprobs: torch.Tensor  # (B, T)
    values: torch.Tensor  # (B, T)
    rewards: torch.Tensor  # (B, T) score at its slots minus beta * k1
    advantages: torch.Tensor  # (B, T)
    returns: torch.Tensor  # (B, T)
    weights: torch.Tensor  # (B, T) of each token in the policy's loss: 1, but where the sampler's mismatch is corrected

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
            weights=torch.ones_like(mask),
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


def joined(batches: Sequence[RolloutBatch]) -> RolloutBatch:
    """One batch of all their rows, in this order."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.mask.shape[1] for batch in batches)
    whole = {}
    for field in fields(RolloutBatch):
        values = [getattr(batch, field.name) for batch in batches]
        if field.name == "rows":
            whole[field.name] = torch.cat(values)
        elif isinstance(values[0], list):
            whole[field.name] = [row for value in values for row in value]
        else:
            whole[field.name] = torch.cat([pad(value, (0, width - value.shape[1])) for value in values])
    return RolloutBatch(**whole)


def dealt(batch: RolloutBatch, index: Sequence[int], size: int, ranks: int, *, shared: bool = False) -> list[list[list[int]]]:
    """The micro-batches of each rank, of the rows at `index`: equally many, for collectives inside forward and backward need that; the last
    ones may be empty. `size` and `shared` as in `by_length`.

    Of two ways the one whose fullest rank has less to read, padding included. Sequences dealt by their tokens give equal shares of rows
    that are less alike in length; micro-batches dealt whole are as alike as one rank's, but may be too few to share evenly.
    """
    whole = list(by_length(batch, index, size, shared=shared))
    ways = [_shared_out([(_slots(batch, part, shared), part) for part in whole], ranks)]
    if ranks > 1:
        rows = [[row for part in hand for row in part] for hand in _shared_out(_sequences(batch, index, shared), ranks)]
        ways.append([list(by_length(batch, hand, size, shared=shared)) for hand in rows])
    hands = min(ways, key=lambda way: max(sum(_slots(batch, part, shared) for part in hand) for hand in way))
    most = max(map(len, hands))
    return [hand + [[] for _ in range(most - len(hand))] for hand in hands]


def _shared_out(weighed: Sequence[tuple[int, list[int]]], ranks: int) -> list[list[list[int]]]:
    """The heaviest first, each to the rank that has least."""
    if ranks == 1:
        return [[rows for _, rows in weighed]]
    hands: list[list[list[int]]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for weight, rows in sorted(weighed, reverse=True):
        least = held.index(min(held))
        hands[least].append(rows)
        held[least] += weight
    return hands


def _slots(batch: RolloutBatch, rows: Sequence[int], shared: bool) -> int:
    """Tokens that a forward of these rows reads, padding included."""
    lengths = [length for length, _ in _sequences(batch, rows, shared)]
    return len(lengths) * max(lengths, default=0)


def _sequences(batch: RolloutBatch, index: Sequence[int], shared: bool) -> list[tuple[int, list[int]]]:
    """(tokens, rows) of each sequence that `columns` makes of the rows at `index`."""
    groups: dict[object, list[int]] = {}
    for row in index:
        groups.setdefault(batch.prompts[row] if shared else row, []).append(row)
    return [(len(batch.prompts[rows[0]]) + sum(len(batch.answers[row]) for row in rows), rows) for rows in groups.values()]


def by_length(batch: RolloutBatch, index: Sequence[int], size: int, *, shared: bool = False) -> Iterator[list[int]]:
    """Micro-batches of up to about `size` rows, alike in length: fewer where more than MOST_PADDING of a large one would be padding. Under
    a global token count this changes no gradient, only the work.

    `shared`: rows of one prompt stay together, as `columns` needs them.
    """
    part: list[int] = []
    sequences, tokens = 0, 0
    for length, rows in sorted(_sequences(batch, index, shared)):
        slots = (sequences + 1) * length
        padded = slots > LARGE and tokens + length < (1 - MOST_PADDING) * slots
        if part and (padded or len(part) + len(rows) > size):
            yield part
            part, sequences, tokens = [], 0, 0
        part, sequences, tokens = part + rows, sequences + 1, tokens + length
    if part:
        yield part


def read_tokens(batch: RolloutBatch, shared: bool) -> int:
    """Tokens of the sequences of `columns`, without padding: with `shared`, a prompt once for all its answers."""
    prompts = set(batch.prompts) if shared else batch.prompts
    return sum(map(len, prompts)) + sum(map(len, batch.answers))


@dataclass(frozen=True)
class Columns:
    """Sequences, right-padded to L, and where the answers' states lie in them. b rows, N = sum of their answer lengths.

    A sequence holds a prompt and its answer; or a prompt once and all its answers, each of which sees the prompt and itself.
    """

    input_ids: torch.Tensor  # (s, L)
    attention_mask: torch.Tensor  # (s, L), or (s, 1, L, L) bool where answers share a prompt
    position_ids: torch.Tensor  # (s, L)
    sequence: torch.Tensor  # (N,) sequence of each answer token
    state: torch.Tensor  # (N,) column of the state before it
    token: torch.Tensor  # (N,) the token
    row: torch.Tensor  # (N,) its row of the batch
    slot: torch.Tensor  # (N,) its index t in the answer
    rows: int  # b

    def spread(self, flat: torch.Tensor, width: int) -> torch.Tensor:
        """(N,) per answer token -> (b, width), zero where there is no token."""
        return flat.new_zeros(self.rows, width).index_put((self.row, self.slot), flat)


def columns(batch: RolloutBatch, pad_id: int, device: torch.device, *, shared: bool = False) -> Columns:
    """Lay out all rows of `batch`; with `shared`, the rows of one prompt in one sequence."""
    groups: dict[object, list[int]] = {}
    for row, prompt in enumerate(batch.prompts):
        groups.setdefault(prompt if shared else row, []).append(row)
    lengths = [len(batch.prompts[rows[0]]) + sum(len(batch.answers[row]) for row in rows) for rows in groups.values()]
    count, width = len(groups), max(lengths, default=0)
    ids = torch.full((count, width), pad_id)
    positions = torch.arange(width).repeat(count, 1)
    part = torch.full((count, width), -1)  # 0 the prompt, 1.. its answers, -1 padding
    sequence, state, token, owner, slot = [], [], [], [], []
    for place, rows in enumerate(groups.values()):
        prompt = batch.prompts[rows[0]]
        start = len(prompt)
        ids[place, :start], part[place, :start] = torch.tensor(prompt, dtype=torch.long), 0
        for number, row in enumerate(rows, start=1):
            answer = batch.answers[row]
            end = start + len(answer)
            ids[place, start:end], part[place, start:end] = torch.tensor(answer, dtype=torch.long), number
            positions[place, start:end] = torch.arange(len(prompt), len(prompt) + len(answer))
            sequence += [place] * len(answer)
            state += [len(prompt) - 1, *range(start, end - 1)][: len(answer)]
            token += answer
            owner += [row] * len(answer)
            slot += range(len(answer))
            start = end
    attention = (part >= 0).long()
    if shared:
        seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # (s, query, key)
        attention = (seen & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    flat = [torch.tensor(values, dtype=torch.long) for values in (sequence, state, token, owner, slot)]
    moved = [tensor.to(device) for tensor in (ids, attention, positions, *flat)]
    return Columns(*moved, rows=len(batch))
