"""Samples from a transformers model in this process: one prefill a distinct prompt, then one token a step, finished rows retired."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rlef.rollout.base import Completion, SampleRequest, SamplingParams, Weights, batches, keyed_uniforms


class _RoomyLayer(DynamicLayer):
    """A cache layer that writes into spare room: DynamicLayer copies the whole cache at every token."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room = [torch.empty(0), torch.empty(0)]
        self._length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, new = self._length, self._length + key_states.shape[-2]
        views = []
        for index, states in enumerate((key_states, value_states)):
            room = self._room[index]
            if room.dim() < 4 or room.shape[2] < new:
                batch, heads, _, size = states.shape
                grown = states.new_empty(batch, heads, new + 64, size)
                if old:
                    grown[:, :, :old] = room[:, :, :old]
                self._room[index] = room = grown
            room[:, :, old:new] = states
            views.append(room[:, :, :new])
        self._length = new
        self.keys, self.values = views
        return views[0], views[1]

    def select(self, rows: torch.Tensor) -> None:
        for index, room in enumerate(self._room):
            self._room[index] = room.index_select(0, rows)
        self.keys, self.values = (room[:, :, : self._length] for room in self._room)


def _new_cache(model: PreTrainedModel) -> Cache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _select_rows(cache: Cache, rows: torch.Tensor) -> None:
    for layer in cache.layers:
        if isinstance(layer, _RoomyLayer):
            layer.select(rows)
        else:
            layer.reorder_cache(rows)  # type: ignore[arg-type]


class HFGenerator:
    """The reference sampler. Equal keys give equal answers in any batch, order or process (up to float ties).

    A token is drawn by inverting the cumulative distribution at the sample's own uniform (`keyed_uniforms`), so no global
    generator is read or moved. `batch_size` rows are decoded together.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, batch_size: int = 256) -> None:
        self.model = model
        self.pad_id = pad_id
        self.batch_size = batch_size

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion a request, in the order of the requests."""
        completions: list[Completion | None] = [None] * len(requests)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for rows in batches(requests, self.batch_size):
                    for index, completion in zip(rows, self._decode([requests[row] for row in rows], params, progress), strict=True):
                        completions[index] = completion
        finally:
            self.model.train(was_training)
        return [completion for completion in completions if completion is not None]

    @torch.no_grad()
    def next_probabilities(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[float]]:
        """The probability of each of `tokens` after each prompt, in fp32."""
        device = next(self.model.parameters()).device
        rows: list[list[float]] = [[]] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            width = max(len(prompts[index]) for index in part)
            ids = torch.full((len(part), width), self.pad_id)
            mask = torch.zeros(len(part), width, dtype=torch.long)
            for row, index in enumerate(part):
                ids[row, width - len(prompts[index]) :] = torch.tensor(list(prompts[index]))
                mask[row, width - len(prompts[index]) :] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
            logits = self.model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False, logits_to_keep=1).logits
            found = logits[:, -1].float().softmax(-1)[:, list(tokens)].tolist()
            for index, values in zip(part, found, strict=True):
                rows[index] = values
        return rows

    def _decode(self, requests: list[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None) -> list[Completion]:
        device = next(self.model.parameters()).device
        count, width = len(requests), max(len(request.prompt_ids) for request in requests)
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        place = {prompt: row for row, prompt in enumerate(prompts)}

        # 1. prefill each distinct prompt once, left-padded, positions counted from its own first token
        ids = torch.full((len(prompts), width), self.pad_id, device=device)  # (U, P)
        mask = torch.zeros((len(prompts), width), dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, width - len(prompt) :] = 1
        cache = _new_cache(self.model)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]

        # 2. spread the prompts over their samples
        rows = torch.tensor([place[request.prompt_ids] for request in requests], device=device)
        if count != len(prompts):
            _select_rows(cache, rows)
            logits, mask = logits[rows], mask[rows]
        next_position = mask.sum(-1)
        mask = torch.cat([mask, mask.new_zeros(count, params.max_tokens)], dim=1)  # (B, P + T)
        if params.temperature > 0:
            draws = np.stack([keyed_uniforms(request.key, params.max_tokens) for request in requests])
            uniforms = torch.from_numpy(draws).to(device)  # (B, T) fp64
        else:
            uniforms = torch.zeros(count, params.max_tokens, device=device)

        # 3. one token a step; rows that stopped are dropped from the batch once a quarter of it is idle
        stops = torch.tensor(params.stop_ids, dtype=torch.long, device=device)
        tokens = torch.zeros(count, params.max_tokens, dtype=torch.long)
        logprobs = torch.zeros(count, params.max_tokens)
        lengths = [params.max_tokens] * count
        finished = [False] * count
        live = torch.arange(count, device=device)  # batch row -> request
        running = torch.ones(count, dtype=torch.bool, device=device)  # by batch row
        for step in range(params.max_tokens):
            token, logprob = _draw(logits, params.temperature, uniforms[live, step])
            tokens[live.cpu(), step] = token.cpu()
            logprobs[live.cpu(), step] = logprob.cpu()
            stopping = running & torch.isin(token, stops)
            if stopping.any():
                for request in live[stopping].tolist():
                    lengths[request], finished[request] = step + 1, True
                running = running & ~stopping
                if progress is not None:
                    progress(int(stopping.sum()))
            alive = int(running.sum())
            if alive == 0 or step + 1 == params.max_tokens:
                if progress is not None and alive:
                    progress(alive)
                break
            if alive <= 0.75 * len(live):
                keep = running.nonzero().squeeze(-1)
                _select_rows(cache, keep)
                live, token, mask, next_position = live[keep], token[keep], mask[keep], next_position[keep]
                running = running[keep]
            mask[:, width + step] = 1
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=mask[:, : width + step + 1],
                position_ids=next_position[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            next_position = next_position + 1
        return [
            Completion(tuple(tokens[row, : lengths[row]].tolist()), tuple(logprobs[row, : lengths[row]].tolist()), finished[row])
            for row in range(count)
        ]

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        """Nothing to do: it samples from the very model that is trained."""
        return {}

    def close(self) -> None:
        """Nothing to release: the model belongs to the caller."""


class CopyGenerator(HFGenerator):
    """For a policy whose weights are divided among ranks (ZeRO-3), which sample unequally often: each rank samples from a copy of its own.

    Its weights come whole at a sync and are let go after the answers that follow it: between, they would take as much room as ZeRO-3 saves.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, batch_size: int = 256) -> None:
        """`model`: of the policy's shape; its own weights are let go."""
        super().__init__(model, pad_id, batch_size)
        self._let_go()

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Once after each sync."""
        try:
            return super().generate(requests, params, progress)
        finally:
            self._let_go()

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        """Gathers the weights one at a time. All ranks call it."""
        for name, value in policy.full_parameters():
            self.model.get_parameter(name.removeprefix("model.")).data = value.detach().clone()
        return {}

    def _let_go(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)


def _draw(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The token at quantile `uniform` (B,) of softmax(logits / temperature) (B, V), and its log-probability. Temperature 0: the mode."""
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), -1)
        token = logprobs.argmax(-1)
    else:
        logprobs = torch.log_softmax(logits.float() / temperature, -1)
        cumulative = logprobs.double().exp().cumsum(-1)
        # Rounding leaves the last entry near 1: scaling by it keeps every draw inside the vocabulary.
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(-1, token[:, None]).squeeze(-1)
