"""A finished policy's answers with their scores, the same ones on every process: what DPO and best-of-n distillation learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlef.config import DpoStage, RftStage
from rlef.engines import dist
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, pick_device, stop_ids
from rlef.rl.pairs import step_start
from rlef.rl.sampling import Prompt, Sample, load_reward, read_prompts, sample_answers, score_answers, take_prompts
from rlef.rollout.base import Completion, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.stages.context import StageContext

Answer = tuple[Prompt, int, Completion]


class ScoredSampler:
    """The policy in the folder `policy` and the reward of the stage. `iteration` is part of the noise's key."""

    def __init__(self, ctx: StageContext, settings: DpoStage | RftStage, policy: Path, iteration: int = 0) -> None:
        self.ctx, self.settings, self.iteration = ctx, settings, iteration
        section, device = ctx.config.model, ctx.config.launch.device
        self.tokenizer = load_tokenizer(policy, trust_remote_code=section.trust_remote_code)
        model = load_policy(policy, dtype=section.dtype, trust_remote_code=section.trust_remote_code, device=pick_device(device))
        stops = stop_ids(self.tokenizer, model)
        self.params = SamplingParams(settings.max_tokens, settings.temperature, stops)
        self.generator = HFGenerator(model, int(self.tokenizer.pad_token_id), settings.rollout_batch_size)
        self.reward = load_reward(settings, ctx.inputs, self.tokenizer, section, stops, ctx.config.launch.rewards_on)

    def answers(self) -> list[Sample]:
        """`samples_per_prompt` answers to `count` prompts: each iteration takes the next ones."""
        settings = self.settings
        prompts = read_prompts(self.ctx.inputs["prompts"], self.tokenizer, self.ctx.config.model, use_answers=settings.use_answers)
        chosen = take_prompts(prompts, self.iteration, min(settings.count, len(prompts)), self.ctx.seed)
        samples = self._scored(self._sampled("sample", chosen, settings.samples_per_prompt))
        if all(sample.score.masked for sample in samples):
            name = self.ctx.name
            raise UserError(
                f"{name}: not one of {len(samples)} answers could be judged",
                fix=f"see why {name}.prm or {name}.irm gives no score; a function that needs `gold` needs use_answers: true",
            )
        return samples

    def retries(self, wrong: Sequence[tuple[Sample, int]], count: int) -> list[list[Sample]]:
        """`count` whole answers for each, that go on from the tokens before the wrong step."""
        if not wrong:
            return []
        begun = [sample.completion for sample, _ in wrong]
        starts = [step_start(sample.score, step) for sample, step in wrong]
        prompts = [
            replace(sample.prompt, ids=sample.prompt.ids + old.tokens[:start])
            for (sample, _), old, start in zip(wrong, begun, starts, strict=True)
        ]
        answers = []
        for place, (_, index, new) in enumerate(self._sampled("next steps", prompts, count, first=self.settings.samples_per_prompt)):
            sample, old, start = wrong[place // count][0], begun[place // count], starts[place // count]
            whole = Completion(old.tokens[:start] + new.tokens, old.logprobs[:start] + new.logprobs, new.finished)
            answers.append((sample.prompt, index, whole))
        scored = self._scored(answers)
        return [scored[place : place + count] for place in range(0, len(scored), count)]

    def _sampled(self, what: str, prompts: Sequence[Prompt], samples: int, first: int = 0) -> list[Answer]:
        ctx = self.ctx
        with ctx.tracker.progress(f"{ctx.name}: {what}", len(prompts) * samples) as advance:
            return sample_answers(
                self.generator, prompts, samples, self.params, seed=ctx.seed, iteration=self.iteration, first=first, progress=advance
            )

    def _scored(self, answers: Sequence[Answer]) -> list[Sample]:
        # A served model's last digits hang on who else asks, and two processes whose scores differ may keep different numbers of pairs.
        return dist.broadcast_object(score_answers(self.reward, answers))
