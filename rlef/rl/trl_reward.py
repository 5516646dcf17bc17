"""The reward r = r_I * r_A as a reward function of TRL's trainers, from the folders of reward models or from a run.

    from rlef.rl.trl_reward import TrlReward

    GRPOTrainer(model=.., reward_funcs=TrlReward("my_prm", irm="my_irm"), train_dataset=..)

It is `rlef.rl.reward` that scores: steps up to the answer line, r_A the least of them, 0 without a final answer, None (which TRL leaves
out) where a model could not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reward_models.instruction import InstructionRewardModel
from reward_models.process import ProcessRewardModel
from reward_models.serving.openrlhf import PromptReader
from rlef.config import ModelSection
from rlef.errors import UserError
from rlef.load_config import config_of
from rlef.models import model_folder, pick_device
from rlef.records import Problem, problem_id
from rlef.rl.reward import RewardFunction, Score
from rlef.rollout.base import Completion
from rlef.run_dir import RunDir

Messages = list[dict[str, Any]]


class TrlReward:
    """Takes prompts and completions as TRL hands them over, texts or messages."""

    __name__ = "rlef"  # what TRL logs it as: rewards/rlef/mean

    def __init__(
        self,
        prm: str | Path,
        irm: str | Path | None = None,
        *,
        model: ModelSection | None = None,
        stop_ids: Sequence[int] = (),
        use_answers: bool = False,
        device: str = "auto",
    ) -> None:
        """`prm`, `irm`: folders of trained reward models, or of the stages that made them; without an IRM r_I is 1. `model`: how questions
        are put and answers written (default: rlef's own). `stop_ids`: ids that end an answer; where they are given, one that ends
        otherwise gets 0. `use_answers`: a wrong one by the data set's column `answer` gets 0, too."""
        process = ProcessRewardModel.load(model_folder(prm), pick_device(device))
        instruction = InstructionRewardModel.load(model_folder(irm), pick_device(device)) if irm is not None else None
        self.model, self.stop_ids, self.use_answers = model or ModelSection(), frozenset(stop_ids), use_answers
        end = process.tokenizer.eos_token_id
        self._prompts, self._end = PromptReader(process.tokenizer), () if end is None else (int(end),)
        self._reward = RewardFunction(
            prm=process, irm=instruction, tokenizer=process.tokenizer, model=self.model, stops=self._end, use_answers=use_answers
        )

    @classmethod
    def of_run(cls, run_dir: str | Path, **how: Any) -> TrlReward:
        """With the run's last reward models, and its way to put questions and write answers. Raises UserError where it has no PRM."""
        config, run = config_of(run_dir), RunDir(run_dir)
        made = {stage.kind: run.stage(name) for name, stage in config.stages.items() if run.manifest(name) is not None}
        if "prm" not in made:
            raise UserError(f"{run_dir}: no finished stage of kind prm", fix="run it first, or give the folder of another")
        return cls(made["prm"], made.get("irm"), model=config.model, **how)

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward a completion, in order. What TRL passes beyond that is not read, but for `answer` with `use_answers`."""
        scores = self.score(prompts, completions, completion_ids, columns.get("answer") if self.use_answers else None)
        judged = [score for score in scores if not score.masked]
        if log_metric is not None and judged:
            log_metric("rlef/instruction", fmean(score.instruction for score in judged))
            log_metric("rlef/answer", fmean(score.answer for score in judged))
        if log_extra is not None:
            log_extra("step_scores", [" ".join(f"{value:.2f}" for value in score.step_scores) for score in scores])
        return [None if score.masked else score.total for score in scores]

    def score(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        answers: Sequence[str | None] | None = None,
    ) -> list[Score]:
        """All parts of each reward. Raises UserError where `answers` are wanted and the data set has none."""
        if self.use_answers and answers is None:
            raise UserError("use_answers: the data set has no column `answer`", fix="add it, or leave use_answers out")
        known = answers if answers is not None else [None] * len(prompts)
        questions = [self._question(prompt) for prompt in prompts]
        problems = [
            Problem(id=problem_id(question), question=question, answer=answer) for question, answer in zip(questions, known, strict=True)
        ]
        ids = completion_ids if completion_ids is not None else [()] * len(completions)
        return self._reward.score(problems, [self._completion(*one) for one in zip(completions, ids, strict=True)])

    def _question(self, prompt: str | Messages) -> str:
        """Without what the chat template and the policy's prompt template put around it."""
        if isinstance(prompt, str):
            text = self._prompts.question(prompt).strip()
        else:
            text = next(_text(message) for message in reversed(prompt) if message["role"] == "user")
        before, _, after = self.model.prompt_template.partition("{question}")
        inside = text.removeprefix(before).removesuffix(after)
        return inside if len(text) - len(inside) == len(before) + len(after) else text

    def _completion(self, completion: str | Messages, ids: Sequence[int]) -> Completion:
        """In the tokens of the PRM's tokenizer, which may not be the policy's."""
        text = completion if isinstance(completion, str) else "".join(map(_text, completion))
        tokens = tuple(self._reward.tokenizer.encode(text, add_special_tokens=False))
        finished = not (self.stop_ids and len(ids)) or ids[-1] in self.stop_ids
        return Completion((*tokens, *self._end), (), finished)


def _text(message: dict[str, Any]) -> str:
    """Of a message whose content is a text, or parts of which those of type text count."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
