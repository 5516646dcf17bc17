"""Settings of the two reward models: frozen, no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraSettings(BaseModel):
    """Train low-rank adapters in place of all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(default=16, ge=1, description="columns of each adapter")
    alpha: int = Field(default=32, ge=1, description="an adapter's product is scaled by alpha / rank")


class InstructionModelConfig(BaseModel):
    """Instruction Reward Model (WizardMath, section 2.2): ranks instructions by definition, precision, integrity."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float = Field(default=1.0, gt=0, description="passes over the lists")
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
    """Process-supervised Reward Model: one logit at each step end; or, with `outcome`, an Outcome-supervised one: at the solution's end."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float = Field(default=2.0, gt=0, description="passes over the solutions")
    separator: str = Field(default="<|step|>", description="special token after each step; added where the tokenizer lacks it")
    threshold: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="label anew from the rates that rows keep: a step is right where more than this share of its completions reached the "
        "answer. None: the labels as they are",
    )
    neutral: Literal["keep", "right", "wrong", "mask"] = Field(
        default="keep",
        description="what a label between 0 and 1 becomes in rows that keep no rates, such as PRM800K's neutral steps: right counts all "
        "steps that do not spoil the solution, mask and wrong those alone that help; keep: a soft label",
    )
    outcome: bool = Field(
        default=False, description="an outcome reward model: the whole solution is one step, right where the row is `correct`"
    )
    mask_after_first_error: bool = Field(default=True, description="steps after the first wrong one are not trained on")
    balance_classes: bool = Field(default=False, description="weight the two classes equally")
    language_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the next-token loss on right steps, by the frozen LM head of `init`: a step's tokens teach more about right "
        "steps than its one label (text-generation regularisation, GRM, arXiv 2406.10216)",
    )
    max_length: int = Field(default=512, ge=8, description="tokens of question and steps; a longer solution is a flagged failure")

    @model_validator(mode="after")
    def _outcomes_have_no_steps(self) -> ProcessModelConfig:
        if self.outcome and (self.threshold is not None or self.neutral != "keep"):
            raise ValueError("outcome: trained on `correct` alone; leave out threshold and neutral")
        return self


FormName = Literal["math_shepherd", "rlhflow", "qwen", "trl"]


class ProcessForm(BaseModel):
    """How a published process reward model is written to and read; a file process_form.json beside the model has these keys.

    math_shepherd (arXiv 2312.08935): `Q Step 1: .. TAG`, a language model that says right or wrong at the tag.
    rlhflow (RLHFlow/RLHF-Reward-Modeling): a user turn a step, which the assistant answers by right or wrong.
    qwen (Qwen2.5-Math-PRM, arXiv 2501.07301): chat, a separator token after each step, two classes there.
    trl (TRL's PRMTrainer): each step and the separator tokenised by themselves, two classes at the last of their tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    form: FormName = Field(description="one of the four above")
    separator: str | None = Field(default=None, description="what ends a step (default: ки, <extra_0> or a line break, by form)")
    right: str = Field(default="+", description="math_shepherd, rlhflow: the word for a right step")
    wrong: str = Field(default="-", description="math_shepherd, rlhflow: the word for a wrong step")
    system: str | None = Field(default=None, description="rlhflow, qwen: the chat's system turn (default: qwen's own; else none)")
    max_length: int = Field(default=4096, ge=8, description="tokens of question and steps; a longer solution is a flagged failure")
