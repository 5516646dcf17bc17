"""Settings of the two reward models: frozen, no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class InstructionModelConfig(BaseModel):
    """Instruction Reward Model (WizardMath, section 2.2): ranks instructions by definition, precision, integrity."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float = Field(default=1.0, gt=0)
    loss: Literal["pairwise", "listwise"] = Field(
        default="pairwise", description="Bradley-Terry over all pairs of a list, or Plackett-Luce over the list"
    )
    margin: float = Field(default=0.25, ge=0, description="margin per rank of difference")
    cross_seed_weight: float = Field(
        default=0.3, ge=0, description="weight of pairs of different seeds: pairs of one seed fix its scores only up to a constant"
    )
    references: int = Field(default=256, ge=8, description="stored instructions that r_I is a win rate against")
    floor: float = Field(default=0.05, ge=0, lt=1, description="least r_I, so that no prompt is silenced")
    max_length: int = Field(default=256, ge=8, description="tokens of an instruction")


class ProcessModelConfig(BaseModel):
    """Process-supervised Reward Model: one logit at each step end."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float = Field(default=2.0, gt=0)
    separator: str = Field(default="<|step|>", description="special token after each step; added where the tokenizer lacks it")
    threshold: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="label anew from the rates that rows keep: a step is right where more than this share of its completions reached the "
        "answer. None: the labels as they are",
    )
    mask_after_first_error: bool = True
    balance_classes: bool = Field(default=False, description="weight the two classes equally")
    language_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the next-token loss on right steps, by the frozen LM head of `init`: a step's tokens teach more about right "
        "steps than its one label (text-generation regularisation, GRM, arXiv 2406.10216)",
    )
    max_length: int = Field(default=512, ge=8, description="tokens of question and steps; a longer solution is a flagged failure")
