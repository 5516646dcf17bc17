"""The process reward model in use: the score of every step in one forward, and their aggregate r_A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from reward_models.config import ProcessModelConfig
from reward_models.data import batches_by_length, pad, step_columns
from reward_models.errors import UserError
from reward_models.model import Tokenizer, load, load_tokenizer

SETTINGS = "process_model.json"


@dataclass(frozen=True)
class StepScores:
    """One score in (0,1) a step. `truncated`: the solution is longer than the model may read; it has no scores."""

    scores: tuple[float, ...]
    truncated: bool = False


def aggregate(scores: Sequence[float], how: str = "min") -> float:
    """r_A of step scores: min (WizardMath v3), product, mean or last. No step gives 0."""
    if not scores:
        return 0.0
    if how == "min":
        return min(scores)
    if how == "product":
        return math.prod(scores)
    if how == "mean":
        return sum(scores) / len(scores)
    if how == "last":
        return scores[-1]
    raise UserError(f"aggregate {how!r} is unknown", fix="use min, product, mean or last")


class ProcessRewardModel:
    """Scores depend on the prefix up to the step alone (the trunk is causal), as rewards inside RL need."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, settings: ProcessModelConfig) -> None:
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> ProcessRewardModel:
        """Raises UserError where the folder is no process reward model."""
        file = Path(folder) / SETTINGS
        if not file.is_file():
            raise UserError(f"{folder}: no {SETTINGS}", fix="give the folder of a trained process reward model")
        settings = ProcessModelConfig.model_validate_json(file.read_text())
        return cls(load(AutoModelForTokenClassification, folder, device), load_tokenizer(folder), settings)

    @torch.no_grad()
    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]], batch_size: int = 64) -> list[StepScores]:
        """One StepScores a solution, in order; independent of padding, batch and order up to float rounding."""
        read = [
            step_columns(self.tokenizer, question, parts, self.settings.separator) for question, parts in zip(questions, steps, strict=True)
        ]
        results = [StepScores((), truncated=len(one.ids) > self.settings.max_length) for one in read]
        fitting = [index for index, one in enumerate(results) if not one.truncated and read[index].columns]
        device = next(self.model.parameters()).device
        for piece in batches_by_length([len(read[index].ids) for index in fitting], batch_size):
            rows = [fitting[place] for place in piece]
            batch = {
                name: tensor.to(device) for name, tensor in pad([read[row].ids for row in rows], int(self.tokenizer.pad_token_id)).items()
            }
            logits = self.model(**batch, use_cache=False).logits[..., 0].float().cpu()
            for place, row in enumerate(rows):
                results[row] = StepScores(tuple(torch.sigmoid(logits[place, read[row].columns]).tolist()))
        return results
