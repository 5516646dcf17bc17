"""The process reward model in use: the score of every step in one forward, and their aggregate r_A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from reward_models import metrics
from reward_models.config import FormName, ProcessForm, ProcessModelConfig
from reward_models.data import StepColumns, batches_by_length, pad, step_columns
from reward_models.errors import UserError
from reward_models.forms import form_columns, form_of, load_published
from reward_models.model import Tokenizer, load, load_tokenizer

SETTINGS = "process_model.json"


@dataclass(frozen=True)
class StepScores:
    """One score in (0,1) a step; of an outcome model one, of the whole solution, at its last step. `truncated`: the solution is longer
    than the model may read; it has no scores."""

    scores: tuple[float, ...]
    truncated: bool = False

    def first_error(self, threshold: float) -> int | None:
        """Place of the first step below `threshold`, -1 where there is none; None for a solution that was not read."""
        return None if self.truncated else metrics.first_error(self.scores, threshold)


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

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, settings: ProcessModelConfig, form: ProcessForm | None = None) -> None:
        self.model, self.tokenizer, self.settings, self.form = model.eval(), tokenizer, settings, form

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        form: FormName | ProcessForm | None = None,
        model: PreTrainedModel | None = None,
    ) -> ProcessRewardModel:
        """A model of ours, or a published one whose form is told, stated in process_form.json or shown by two classes. `model`: its
        weights, where they are in memory already.

        Raises UserError where the folder is no process reward model.
        """
        file = Path(folder) / SETTINGS
        if not file.is_file():
            form = form_of(folder, form)
            model, tokenizer = load_published(folder, form, device)
            positions = getattr(model.config, "max_position_embeddings", None) or form.max_length
            return cls(model, tokenizer, ProcessModelConfig(max_length=min(form.max_length, positions)), form)
        if form is not None:
            raise UserError(f"{folder}: is of our own form, as its {SETTINGS} says", fix="leave out the form")
        settings = ProcessModelConfig.model_validate_json(file.read_text())
        return cls(model or load(AutoModelForTokenClassification, folder, device, trained=True), load_tokenizer(folder), settings)

    def columns(self, question: str, steps: Sequence[str]) -> StepColumns:
        """Ids of a solution, and where each step is judged."""
        if self.form is not None:
            return form_columns(self.tokenizer, self.form, question, steps)
        judged = ["\n".join(steps)] if self.settings.outcome and steps else steps
        return step_columns(self.tokenizer, question, judged, self.settings.separator)

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]], batch_size: int = 64) -> list[StepScores]:
        """One StepScores a solution, in order; independent of padding, batch and order up to float rounding."""
        return self.score_read([self.columns(question, parts) for question, parts in zip(questions, steps, strict=True)], batch_size)

    @torch.no_grad()
    def score_read(self, read: Sequence[StepColumns], batch_size: int = 64) -> list[StepScores]:
        """The scores of solutions that `columns` gave."""
        results = [StepScores((), truncated=len(one.ids) > self.settings.max_length) for one in read]
        fitting = [index for index, one in enumerate(results) if not one.truncated and read[index].columns]
        device = next(self.model.parameters()).device
        for piece in batches_by_length([len(read[index].ids) for index in fitting], batch_size):
            rows = [fitting[place] for place in piece]
            # Published tokenizers may have no pad token; any id does, for padding stands behind all that is read.
            batch = pad([read[row].ids for row in rows], int(self.tokenizer.pad_token_id or 0))
            del batch["attention_mask"]  # padding stands where a causal trunk cannot look, and without a mask attention is half the work
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = self.model(**batch, use_cache=False).logits[..., 0].float().cpu()
            for place, row in enumerate(rows):
                results[row] = StepScores(tuple(torch.sigmoid(logits[place, read[row].columns]).tolist()))
        return results
