"""The reward models that a stage asks: loaded from the folders of its inputs, served elsewhere, or functions of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reward_models.client import ServedInstructionModel, ServedProcessModel
from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel
from rlef.config import addresses, function_of
from rlef.models import model_folder, pick_device
from rlef.rl.functions import GradeFunction, RateFunction
from rlef.rl.reward import InstructionScorer, ProcessScorer

Source = str | tuple[str, ...] | None


def instruction_scorer(source: Source, inputs: Mapping[str, Path], device: str) -> InstructionScorer | None:
    """Of the stage's key `irm`; None where it has none."""
    if urls := addresses(source):
        return ServedInstructionModel(urls)
    if place := function_of(source):
        return RateFunction(*place)
    return InstructionRewardModel.load(model_folder(inputs["irm"]), pick_device(device)) if "irm" in inputs else None


def process_scorer(source: Source, inputs: Mapping[str, Path], device: str) -> ProcessScorer | GradeFunction | None:
    """Of the stage's key `prm`; None where it has none."""
    if urls := addresses(source):
        return ServedProcessModel(urls)
    if place := function_of(source):
        return GradeFunction(*place)
    return ProcessRewardModel.load(model_folder(inputs["prm"]), pick_device(device)) if "prm" in inputs else None
