"""What every sampler offers: token ids in, token ids out, with noise that belongs to the sample and not to the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. No top-p, top-k or repetition penalty: with any of them the sampler is not the policy that is scored."""

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampleRequest:
    """One answer to sample. `key` names its noise: (run seed, iteration, prompt id as int, sample index)."""

    prompt_ids: tuple[int, ...]
    key: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """Tokens include the stop token where one was sampled. `logprobs` are of the tempered distribution, one a token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Weights(Protocol):
    """The policy that is trained, as its engine has it. All ranks call these, and walk the parameters to the end."""

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def save_model(self, folder: Path) -> None: ...


class Generator(Protocol):
    """A sampler. `progress` is called with the number of rows finished since its last call."""

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]: ...

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        """From here on answers are the trained policy's as it is now. Returns what the log should hold of it."""
        ...

    def close(self) -> None: ...


def batches(requests: Sequence[SampleRequest], size: int) -> list[list[int]]:
    """Places of the requests that are decoded together: alike in length, equal prompts side by side. A batch asked for alone is itself."""
    order = sorted(range(len(requests)), key=lambda place: (len(requests[place].prompt_ids), requests[place].prompt_ids, place))
    return [order[start : start + size] for start in range(0, len(order), size)]


def keyed_uniforms(key: Sequence[int], count: int) -> np.ndarray:
    """`count` uniforms in [0,1) that depend on `key` alone: the same sample is drawn in any batch, order, rank or after a resume."""
    digest = hashlib.blake2b(repr(tuple(int(part) for part in key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def seed_of(key: Sequence[int]) -> int:
    """A seed in 0 .. 2**63 - 1 that depends on `key` alone."""
    digest = hashlib.blake2b(repr(tuple(int(part) for part in key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
