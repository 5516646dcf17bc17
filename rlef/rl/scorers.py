"""The reward models that a stage asks: loaded from the folders of its inputs, served elsewhere, or functions of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reward_models.client import ServedInstructionModel, ServedProcessModel
from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel
from rlef.config import addresses, function_of
from rlef.models import model_folder, pick_device
from rlef.rl.adapted_rewards import on_base
from rlef.rl.adapters import AdaptedBase
from rlef.rl.functions import GradeFunction, RateFunction
from rlef.rl.reward import InstructionScorer, ProcessScorer

Source = str | tuple[str, ...] | None


def instruction_scorer(
    source: Source, inputs: Mapping[str, Path], device: str, base: AdaptedBase | None = None
) -> InstructionScorer | None:
    """Of the stage's key `irm`; None where it has none. `base`: what it is read on, where it is an adapter of that."""
    if urls := addresses(source):
        return ServedInstructionModel(urls)
    if place := function_of(source):
        return RateFunction(*place)
    if "irm" not in inputs:
        return None
    folder = model_folder(inputs["irm"])
    return InstructionRewardModel.load(folder, pick_device(device), model=on_base(base, "irm", folder))


def process_scorer(
    source: Source, inputs: Mapping[str, Path], device: str, base: AdaptedBase | None = None
) -> ProcessScorer | GradeFunction | None:
    """Of the stage's key `prm`; None where it has none. `base`: what it is read on, where it is an adapter of that."""
    if urls := addresses(source):
        return ServedProcessModel(urls)
    if place := function_of(source):
        return GradeFunction(*place)
    if "prm" not in inputs:
        return None
    folder = model_folder(inputs["prm"])
    return ProcessRewardModel.load(folder, pick_device(device), model=on_base(base, "prm", folder))
