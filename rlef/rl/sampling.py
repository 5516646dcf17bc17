"""Prompts in, sampled and scored answers out: shared by PPO, GRPO, DPO and best-of-n distillation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlef.config import ModelSection, RewardSettings
from rlef.errors import UserError
from rlef.models import Tokenizer, prompt_ids
from rlef.records import Problem, Rollout, read_jsonl
from rlef.rl.adapters import AdaptedBase
from rlef.rl.reward import RewardFunction, Score
from rlef.rl.scorers import instruction_scorer, process_scorer
from rlef.rollout.base import Completion, Generator, SampleRequest, SamplingParams


@dataclass(frozen=True)
class Prompt:
    """A problem ready to be answered. `problem` holds no gold answer, solution or truth unless use_answers is set."""

    problem: Problem
    ids: tuple[int, ...]
    gold: str | None  # for the log only

    @property
    def key(self) -> int:
        return int(self.problem.id, 16)


@dataclass(frozen=True)
class Sample:
    """One answer to one prompt."""

    prompt: Prompt
    index: int  # which of the prompt's samples
    completion: Completion
    score: Score


def read_prompts(folder: Path, tokenizer: Tokenizer, model: ModelSection, *, use_answers: bool) -> list[Prompt]:
    """The problems to practise on, ready to be answered."""
    return as_prompts(read_practice(folder), tokenizer, model, use_answers=use_answers)


def read_practice(folder: Path) -> list[Problem]:
    """The math problems of a respond, evolve or problems stage, or of a JSONL file. What has no final answer gets r_A = 0 however well it
    is answered, and would teach to write one."""
    rows = read_jsonl(file := prompt_file(folder), Problem, may_be_empty=True)
    problems = [problem for problem in rows if problem.domain == "math"]
    if not rows:
        raise UserError(
            f"{file}: no problem is left to practise on",
            fix="respond's `count` took all that were kept: lower it, evolve more, or name another stage as `prompts`",
        )
    if not problems:
        raise UserError(f"{folder}: no problem of domain math, and r_A is 0 without a final answer", fix="name math problems as `prompts`")
    return problems


def prompt_file(folder: Path) -> Path:
    """Where a stage keeps the problems to practise on; a file stands for itself."""
    names = ("prompts.jsonl", "evolved.jsonl", "seeds.jsonl")
    file = folder if folder.is_file() else next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: none of {', '.join(names)}", fix="name a respond, evolve or problems stage as `prompts`")
    return file


def as_prompts(problems: Sequence[Problem], tokenizer: Tokenizer, model: ModelSection, *, use_answers: bool) -> list[Prompt]:
    """The same problems, ready to be answered; unless `use_answers`, without answers, solutions and truth."""
    prompts = []
    for problem in problems:
        bare = problem if use_answers else problem.model_copy(update={"answer": None, "solution": None, "truth": None})
        prompts.append(Prompt(problem=bare, ids=tuple(prompt_ids(tokenizer, problem.question, model)), gold=problem.answer))
    return prompts


def load_reward(
    settings: RewardSettings,
    inputs: dict[str, Path],
    tokenizer: Tokenizer,
    model: ModelSection,
    stops: Sequence[int],
    device: str,
    base: AdaptedBase | None = None,
) -> RewardFunction:
    """The reward models that the config names, behind one function. `base`: what those that are adapters of it are read on."""
    prm = process_scorer(settings.prm, inputs, device, base)
    assert prm is not None  # the pipeline starts no such stage without one
    return RewardFunction(
        prm=prm,
        irm=instruction_scorer(settings.irm, inputs, device, base),
        tokenizer=tokenizer,
        model=model,
        stops=stops,
        use_answers=settings.use_answers,
        verifiable=settings.verifiable,
        batch_size=settings.score_batch_size,
    )


def take_prompts(prompts: Sequence[Prompt], iteration: int, count: int, seed: int | str) -> list[Prompt]:
    """`count` distinct prompts, a function of (seed, iteration) alone: whole pieces of shuffled passes, each pass's remainder left out."""
    pieces = len(prompts) // count
    if pieces == 0:
        raise UserError(
            f"{len(prompts)} prompts, but {count} are wanted at a time", fix="lower prompts_per_iteration or evolve more prompts"
        )
    lap, piece = divmod(iteration, pieces)
    order = _shuffled(f"{seed}/{lap}", len(prompts))
    return [prompts[place] for place in order[piece * count : (piece + 1) * count]]


@lru_cache(maxsize=1)
def _shuffled(key: str, count: int) -> list[int]:
    """Kept for the iterations of one pass: shuffling 100,000 prompts for each takes longer than it looks."""
    return random.Random(key).sample(range(count), count)


def sample_answers(
    generator: Generator,
    prompts: Sequence[Prompt],
    samples: int,
    params: SamplingParams,
    *,
    seed: int,
    iteration: int,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Prompt, int, Completion]]:
    """`samples` answers a prompt, prompt after prompt, counted from `first`. Noise belongs to (seed, iteration, prompt, sample)."""
    wanted = [(prompt, index) for prompt in prompts for index in range(first, first + samples)]
    requests = [SampleRequest(prompt.ids, (seed, iteration, prompt.key, index)) for prompt, index in wanted]
    completions = generator.generate(requests, params, progress)
    return [(prompt, index, completion) for (prompt, index), completion in zip(wanted, completions, strict=True)]


def score_answers(reward: RewardFunction, answers: Sequence[tuple[Prompt, int, Completion]]) -> list[Sample]:
    """The same answers with their scores."""
    scores = reward.score([prompt.problem for prompt, _, _ in answers], [completion for _, _, completion in answers])
    return [Sample(*answer, score) for answer, score in zip(answers, scores, strict=True)]


def as_rollout(sample: Sample, iteration: int) -> Rollout:
    """The row that the report shows."""
    score = sample.score
    return Rollout(
        problem_id=sample.prompt.problem.id,
        iteration=iteration,
        sample=sample.index,
        question=sample.prompt.problem.question,
        text=score.text,
        step_scores=score.step_scores,
        instruction=score.instruction,
        answer=score.answer,
        total=score.total,
        masked=score.masked,
        length=len(sample.completion.tokens),
        finished=sample.completion.finished,
    )
