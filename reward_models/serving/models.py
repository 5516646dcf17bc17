"""The two reward models as the server holds them: rows in, scores out, nothing remembered between them, and a digest that names each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reward_models.data import StepColumns, instruction_ids
from reward_models.errors import UserError
from reward_models.instruction import InstructionRewardModel, score_ids
from reward_models.process import ProcessRewardModel, StepScores
from reward_models.records import file_digest
from reward_models.serving.openrlhf import PromptReader
from reward_models.steps import split_steps

NOT_THE_MODEL = {"training_args.bin", "metrics.json", "README.md"}  # beside it in its folder; they change no score


class Instructions:
    """Rows are texts, results r_I. Without the model's memory of texts: a server would remember for ever."""

    def __init__(self, folder: str | Path, device: str) -> None:
        self.digest, self._model = digest(folder), InstructionRewardModel.load(folder, device)
        self.tokenizer, self.max_length = self._model.tokenizer, self._model.calibration.max_length
        self.prompts = PromptReader(self.tokenizer)

    def read(self, row: str) -> list[int]:
        return instruction_ids(self.tokenizer, row, self.max_length)

    def tokens(self, read: list[int]) -> int:
        return len(read)

    def score(self, read: Sequence[list[int]]) -> list[float]:
        raw = score_ids(self._model.model, read, int(self.tokenizer.pad_token_id), len(read))
        return self._model.calibration.win_rate(raw)


@dataclass(frozen=True)
class Undivided:
    """A solution's text whose steps are still to be found: millions of them in one request, which would hold up who only hears it."""

    text: str
    delimiter: str


class Solutions:
    """Rows are (question, steps) or (question, Undivided), results StepScores."""

    def __init__(self, folder: str | Path, device: str) -> None:
        self.digest, self._model = digest(folder), ProcessRewardModel.load(folder, device)
        self.tokenizer, self.max_length = self._model.tokenizer, self._model.settings.max_length
        self.prompts = PromptReader(self.tokenizer)

    def read(self, row: tuple[str, Sequence[str] | Undivided]) -> StepColumns:
        question, steps = row
        if isinstance(steps, Undivided):
            steps = [step.text for step in split_steps(steps.text, steps.delimiter)]
        return self._model.columns(question, steps)

    def tokens(self, read: StepColumns) -> int:
        return len(read.ids) if read.columns and len(read.ids) <= self.max_length else 0

    def score(self, read: Sequence[StepColumns]) -> list[StepScores]:
        return self._model.score_read(read, len(read))


def load(irm: str | None, prm: str | None, device: str) -> dict[str, Instructions | Solutions]:
    """By kind, those that are given. Raises UserError where a folder holds no such model."""
    device = pick_device(device)
    models: dict[str, Instructions | Solutions] = {}
    if irm is not None:
        models["irm"] = Instructions(irm, device)
    if prm is not None:
        models["prm"] = Solutions(prm, device)
    return models


def pick_device(name: str) -> str:
    """`auto` is this rank's GPU, where there is one. Raises UserError where a GPU is named and there is none."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no GPU", fix="use --device cpu, or install a CUDA build of torch")
    if name == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return name


def digest(folder: str | Path) -> str:
    """SHA-256 over the names and contents of a model's files: another model, another digest."""
    whole = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and file.name not in NOT_THE_MODEL:
            whole.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return whole.hexdigest()
