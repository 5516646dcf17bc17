"""The instruction reward model in use: a calibrated win rate r_I in (0,1) against stored reference instructions.

Ranking losses fix scores only up to a shift, so sigmoid(score) alone means nothing. r_I(x) = mean_j sigmoid(a * (s(x) - s_j)) over the
references is free of it; a is fitted on held-out pairs. Both are stored beside the weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from reward_models.data import batches_by_length, instruction_ids, pad
from reward_models.errors import UserError
from reward_models.model import Tokenizer, load, load_tokenizer

CALIBRATION = "calibration.json"
SLOPES = (0.05, 20.0)  # bounds of a: separable pairs have no finite optimum


@dataclass(frozen=True)
class Calibration:
    """Scores of the reference instructions, the slope a, the least r_I, and the longest instruction in tokens."""

    references: tuple[float, ...]
    slope: float
    floor: float
    max_length: int

    def win_rate(self, scores: Sequence[float]) -> list[float]:
        """r_I of raw scores, in [floor, 1)."""
        difference = self.slope * (np.asarray(scores, dtype=float)[:, None] - np.asarray(self.references)[None, :])
        rate = (1 / (1 + np.exp(-np.clip(difference, -60, 60)))).mean(1)
        return (self.floor + (1 - self.floor) * rate).tolist()


def fit_slope(differences: Sequence[float]) -> float:
    """The slope that best predicts held-out pairs from s_better - s_worse, by likelihood with Platt's smoothed target (n+1)/(n+2)."""
    delta = np.asarray(differences, dtype=float)
    if not len(delta):
        return 1.0
    target = (len(delta) + 1) / (len(delta) + 2)
    grid = np.geomspace(*SLOPES, 200)
    logits = grid[:, None] * delta[None, :]
    loss = target * np.logaddexp(0, -logits) + (1 - target) * np.logaddexp(0, logits)
    return float(grid[int(loss.mean(1).argmin())])


class InstructionRewardModel:
    """Scores instructions; in one call each text is scored once."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, calibration: Calibration) -> None:
        self.model, self.tokenizer, self.calibration = model.eval(), tokenizer, calibration

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", model: PreTrainedModel | None = None) -> InstructionRewardModel:
        """`model`: its weights, where they are in memory already. Raises UserError where the calibration is missing: without it scores have
        no scale."""
        file = Path(folder) / CALIBRATION
        if not file.is_file():
            raise UserError(
                f"{folder}: no {CALIBRATION}", fix="give the folder of a trained instruction reward model, calibration included"
            )
        stored = json.loads(file.read_text())
        calibration = Calibration(**{**stored, "references": tuple(stored["references"])})
        return cls(model or load(AutoModelForSequenceClassification, folder, device, trained=True), load_tokenizer(folder), calibration)

    def score(self, instructions: Sequence[str], batch_size: int = 64) -> list[float]:
        """r_I of each instruction."""
        return self.calibration.win_rate(self.raw_scores(instructions, batch_size)) if len(instructions) else []

    def truncates(self, instruction: str) -> bool:
        """Whether it is longer than the model may read: its end has no say in its score."""
        return len(instruction_ids(self.tokenizer, instruction, sys.maxsize)) > self.calibration.max_length

    def raw_scores(self, instructions: Sequence[str], batch_size: int = 64) -> list[float]:
        """Scores up to a shift, one an instruction: the logits of the plain sequence classifier. None is kept for another call: batches
        that hang on earlier calls would give other last digits to a run that was stopped between them."""
        distinct = list(dict.fromkeys(instructions))
        scores = dict(
            zip(distinct, score_texts(self.model, self.tokenizer, distinct, self.calibration.max_length, batch_size), strict=True)
        )
        return [scores[text] for text in instructions]


def score_texts(model: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str], max_length: int, batch_size: int = 64) -> list[float]:
    """Raw logits, in order."""
    return score_ids(model, [instruction_ids(tokenizer, text, max_length) for text in texts], int(tokenizer.pad_token_id), batch_size)


@torch.no_grad()
def score_ids(model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, batch_size: int = 64) -> list[float]:
    """Raw logits of tokenised instructions, in order."""
    scores = [0.0] * len(rows)
    device = next(model.parameters()).device
    model.eval()
    for piece in batches_by_length([len(row) for row in rows], batch_size):
        batch = {name: tensor.to(device) for name, tensor in pad([rows[index] for index in piece], pad_id).items()}
        logits = model(**batch, use_cache=False).logits[:, 0].float().cpu().tolist()
        for index, logit in zip(piece, logits, strict=True):
            scores[index] = logit
    return scores


def save_calibration(calibration: Calibration, folder: str | Path) -> None:
    Path(folder, CALIBRATION).write_text(json.dumps(asdict(calibration)))
