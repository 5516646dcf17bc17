"""Held-out problems that lie near an evolved one in a local model's space: what is reworded, which no n-gram finds. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel

from rlef.evolution.decontamination import Match
from rlef.models import load_tokenizer, not_loadable, resolve_path
from rlef.records import Problem

BATCH = 32
LONGEST = 512  # tokens


class Neighbours:
    """Cosine of mean-pooled last hidden states."""

    def __init__(self, tests: Sequence[Problem], path: str, threshold: float, device: torch.device) -> None:
        folder = resolve_path(path)
        self._tests, self._threshold, self._device = list(tests), threshold, device
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.padding_side = "right"  # padding before a text would shift its positions
        try:
            self._model: Any = AutoModel.from_pretrained(folder).to(device).eval()
        except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
            raise not_loadable(folder, error) from None
        self._vectors = self.embed([test.question for test in self._tests])

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """(len(texts), hidden): unit vectors."""
        rows = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            ).to(self._device)
            hidden = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state.float()
            mask = batch.attention_mask[..., None]  # padding must not count
            rows.append((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text the nearest held-out problem, where its cosine reaches the threshold."""
        if not texts:
            return []
        cosines, indices = (self.embed(texts) @ self._vectors.T).max(dim=1)
        return [
            Match("held_out_neighbour", self._tests[int(index)], float(cosine)) if cosine >= self._threshold else None
            for cosine, index in zip(cosines.tolist(), indices.tolist(), strict=True)
        ]
