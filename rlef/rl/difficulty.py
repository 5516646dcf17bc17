"""How hard problems are for a policy: it answers each a few times, and its agreement and the process reward model tell how far it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reward_models.metrics import weighted_vote
from rlef.answers import canonical, same_answer
from rlef.config import Config, EvolveStage
from rlef.models import decode, load_policy, load_tokenizer, model_folder, pick_device, prompt_ids, stop_ids
from rlef.prompts import split_answer
from rlef.records import Problem
from rlef.rl.reward import RewardFunction
from rlef.rl.sampling import Prompt, sample_answers
from rlef.rl.scorers import process_scorer
from rlef.rollout.base import Completion, SamplingParams
from rlef.rollout.hf import HFGenerator

ITERATION = 2**31 + 1  # part of the noise key that no training iteration and no evaluation has
BELIEVED = 0.5  # least r_A of an answer that counts as solved


def pass_rate(answers: Sequence[str | None], weights: Sequence[float], *, known: str | None = None, question: str = "") -> float:
    """Share of the sampled `answers` to a problem that solve it, as far as one can tell, 0..1.

    With a `known` answer those that are right. Without one those that give the winning answer of the weighted vote and weigh BELIEVED or
    more: with weights of 1 the share that agrees with the majority, with a process reward model's r_A in 0..1 the share that agrees with
    its vote and that it believes. (The sum of r_A would follow the truth as closely, but a prompt of which the model is unsure is not one
    that the policy solves half the time.) None: a sample without an answer, which passes in no case.
    """
    if known is not None:
        passed = [answer is not None and same_answer(answer, known, question) for answer in answers]
    else:
        forms = [canonical(answer, question) if answer is not None else None for answer in answers]
        winner = weighted_vote(forms, weights)
        passed = [form is not None and form == winner and weight >= BELIEVED for form, weight in zip(forms, weights, strict=True)]
    return sum(passed) / max(1, len(answers))


class Difficulty:
    """Measures problems by a policy's samples, weighted by a process reward model where there is one."""

    def __init__(self, policy: Path, prm: Path | None, settings: EvolveStage, config: Config) -> None:
        folder, device = model_folder(policy), pick_device(config.launch.device)
        trust = config.model.trust_remote_code
        self._settings, self._section, self._seed = settings, config.model, config.seed_of(settings)
        self._tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        model = load_policy(folder, dtype=config.model.dtype, device=device, trust_remote_code=trust)
        self._stops = stop_ids(self._tokenizer, model)
        self._generator = HFGenerator(model, int(self._tokenizer.pad_token_id), settings.batch_size)
        self._reward = None
        scorer = process_scorer(settings.prm, {"prm": prm} if prm is not None else {}, config.launch.device)
        if scorer is not None:
            self._reward = RewardFunction(
                prm=scorer,
                irm=None,
                tokenizer=self._tokenizer,
                model=config.model,
                stops=self._stops,
                batch_size=settings.batch_size,
            )

    def measure(self, problems: Sequence[Problem], progress: Callable[[int], None] | None = None) -> list[float | None]:
        """A pass rate a problem, of the samples that could be judged; None where none could, and outside math, where answers do not
        compare. `progress` counts samples."""
        rates: list[float | None] = [None] * len(problems)
        places = [place for place, problem in enumerate(problems) if problem.domain == "math"]
        prompts = [self._prompt(problems[place]) for place in places]
        count = self._settings.samples
        params = SamplingParams(self._settings.max_tokens, self._settings.temperature, self._stops)
        answers = sample_answers(self._generator, prompts, count, params, seed=self._seed, iteration=ITERATION, progress=progress)
        judged = self._judged([prompt.problem for prompt, _, _ in answers], [completion for _, _, completion in answers])
        for number, place in enumerate(places):
            problem, group = problems[place], [one for one in judged[number * count : (number + 1) * count] if one is not None]
            known = problem.answer if self._settings.use_answers else None
            if group:
                rates[place] = pass_rate([one for one, _ in group], [weight for _, weight in group], known=known, question=problem.question)
        return rates

    def _prompt(self, problem: Problem) -> Prompt:
        bare = problem.model_copy(update={"answer": None, "solution": None, "truth": None})
        return Prompt(bare, tuple(prompt_ids(self._tokenizer, problem.question, self._section)), gold=None)

    def _judged(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[tuple[str | None, float] | None]:
        """Answer and weight of each completion; one that was cut off gives no answer. None: it could not be judged."""
        if self._reward is not None:
            scores = self._reward.score(problems, completions)
            return [None if score.masked else (score.given, score.answer) for score in scores]
        texts = [decode(self._tokenizer, one.tokens, self._stops) for one in completions]
        return [(split_answer(text, self._section)[1] if one.finished else None, 1.0) for text, one in zip(texts, completions, strict=True)]
