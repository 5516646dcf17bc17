"""The judged steps of the label stage: solutions that the policy writes, completions of their beginnings, the teacher's verdicts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from reward_models.labels import calculator_labels, consensus_labels, first_error_labels, hard_labels
from reward_models.records import SteppedSolution
from rlef.answers import canonical, same_answer
from rlef.config import ANSWERED, COMPLETED, LabelStage, ModelSection
from rlef.errors import UserError
from rlef.evolution.arithmetic import check_equations
from rlef.evolution.labels import agreement, bisection, exact_labels, held_out_count, monte_carlo, perturbed
from rlef.evolution.teachers import Teacher, in_process
from rlef.models import Tokenizer, decode, load_policy, load_tokenizer, model_folder, pick_device, prefix_ids, prompt_ids, stop_ids
from rlef.prompts import split_answer
from rlef.records import Problem, Record
from rlef.rollout.base import Generator, SampleRequest, SamplingParams, batches
from rlef.rollout.served import sampler
from rlef.stages.context import StageContext
from rlef.stages.shards import Shards
from rlef.symbolic import SymbolicTeacher

CHUNK = 64
COMPLETED_TOGETHER = 16  # solutions of a shard of completions; each is decoded by itself
MONTE_CARLO = 1  # second part of the noise key of completions; solutions have 0
Labels = list[float | None]


@dataclass(frozen=True)
class Sampled:
    """A solution that the policy wrote. `correct`: None where the problem's answer is not known."""

    problem: Problem
    steps: list[str]
    answer: str | None
    correct: bool | None
    split: Literal["train", "held_out"]
    temperature: float


class Written(Record):
    """Row of a shard: a solution's text."""

    text: str


class Verdicts(Record):
    """Row of a shard: of each step of a solution a judge's label, or the rate of its completions."""

    steps: tuple[float | None, ...]


def judge(
    ctx: StageContext, shards: Shards, teacher: Teacher, seeds: Sequence[Problem], unsolved: Sequence[Problem]
) -> tuple[list[SteppedSolution], dict]:
    """Solutions sampled from the policy, with a label a step.

    To problems that it was not fine-tuned on, wherever the method can judge those: what it knows by heart it gets right, and the reward
    model would learn to tell known prompts from new ones instead of right steps from wrong ones. A rank with nothing left to do returns
    no rows.
    """
    settings: LabelStage = ctx.settings
    method = settings.method
    if method == "auto":
        known = isinstance(teacher, SymbolicTeacher) and all(problem.truth is not None for problem in seeds)
        answered = all(problem.answer is not None for problem in seeds)
        method = "symbolic" if known else "calculator" if answered else "judge"
    # Evolved problems have no answers to compare with.
    pool = [problem for problem in seeds if problem.answer is not None] if method in ANSWERED else unsolved
    pool = [problem for problem in pool if problem.domain == "math"] or pool  # RL practises on math alone
    if not pool:
        raise UserError(f"{ctx.name}.method: {method} needs problems with known answers", fix="use method: judge")
    chosen = random.Random(f"solutions/{ctx.seed}").sample(pool, min(settings.count, len(pool)))

    # 1. Sample from the policy that the reward model will judge.
    folder = model_folder(ctx.inputs["policy"])
    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, dtype=ctx.config.model.dtype, device=pick_device(ctx.config.launch.device))
    stops = stop_ids(tokenizer, policy)
    probe = prompt_ids(tokenizer, chosen[0].question, ctx.config.model)
    generator = sampler(policy, int(tokenizer.pad_token_id), settings.batch_size, server=settings.server, folder=folder, prompt=probe)
    params = SamplingParams(settings.max_tokens, settings.temperature, stops)
    solutions, empty = _solutions(ctx, chosen, _sample(ctx, shards, generator, params, tokenizer, chosen))
    counts: dict = {"method": method, "without_steps": empty}
    unjudged = 0
    if method == "exact":  # before balancing: what arithmetic cannot judge is no counterweight
        written = len(solutions)
        solutions = [row for row in solutions if any(label is not None for label in _exact(row))]
        unjudged = written - len(solutions)
        if not solutions:
            raise UserError(f"{ctx.name}: exact judged no step of {written} solutions", fix="use another method, or a better policy")
    if settings.balance:
        before = len(solutions)
        solutions = _balanced(solutions, random.Random(f"balance/{ctx.seed}"))
        counts["balanced_away"] = before - len(solutions)
        if all(row.split == "held_out" for row in solutions):
            raise UserError(f"{ctx.name}.balance: every training solution is right", fix="use harder problems, or balance: false")

    # 2. Complete the beginnings of each solution, and let the teacher judge.
    if method == "symbolic" and not isinstance(teacher, SymbolicTeacher):
        raise UserError(f"{ctx.name}.method: symbolic needs teacher.kind: symbolic", fix="use judge or calculator")
    rates = _completed(ctx, shards, method, generator, params, tokenizer, solutions) if method in COMPLETED else None
    if not (shards.main or in_process(teacher)):
        return [], {}
    judged = None
    if method not in ANSWERED or settings.consensus:
        judged = _judged(ctx, shards, teacher, "judge", [(row.problem, row.steps) for row in solutions])

    # 3. From verdicts to labels. The rows keep all verdicts: reward_models.labels finds the labels at another threshold in them.
    equations = [[check_equations(step) for step in row.steps] for row in solutions] if method in ("calculator", "exact") else None
    labeller = {"judge": teacher.name, "symbolic": teacher.name, "calculator": "calculator+monte_carlo"}.get(method, method)
    if rates is not None:
        threshold = (
            0.0 if settings.threshold is None and settings.consensus else settings.threshold
        )  # a judge confirms verdicts, not shares
        labels = _measured(method, rates, equations, threshold)
    elif equations is not None:
        labels = [_exact(row) for row in solutions]
    else:
        assert judged is not None
        labels = judged
    if settings.consensus:
        assert judged is not None
        counts["agreement"] = agreement(judged, labels)
        labels = [consensus_labels(*pair) for pair in zip(judged, labels, strict=True)]
        labeller = f"{labeller} and {teacher.name}"
    out = []
    for place, (sampled, row) in enumerate(zip(solutions, labels, strict=True)):
        if rates is None and all(label is None for label in row):
            continue
        problem = sampled.problem
        out.append(
            SteppedSolution(
                problem_id=problem.id,
                question=problem.question,
                steps=tuple(sampled.steps),
                labels=tuple(row),
                labeller=labeller,
                rates=None if rates is None else tuple(rates[place]),
                samples=None if rates is None else settings.completions,
                equations=None if equations is None else tuple(equations[place]),
                judged=tuple(judged[place]) if judged is not None and settings.consensus else None,
                temperature=sampled.temperature,
                seed=ctx.seed,
                depth=problem.depth,
                answer=canonical(sampled.answer, problem.question) if sampled.answer is not None else None,
                correct=sampled.correct,
                split=sampled.split,
            )
        )
    counts["unjudged"] = unjudged + sum(all(label is None for label in row) for row in labels)
    if counts["unjudged"] == unjudged + len(solutions):
        raise UserError(f"{ctx.name}: {labeller} judged no step", fix="use another teacher, or another method")
    if settings.perturbed and method not in ANSWERED:
        out += _perturb(ctx, shards, teacher, out, {problem.id: problem for problem in chosen})
    return out, counts


def _sample(
    ctx: StageContext, shards: Shards, generator: Generator, params: SamplingParams, tokenizer: Tokenizer, problems: Sequence[Problem]
) -> list[str]:
    """The texts of `samples` solutions a problem, in order; the temperatures take turns over them all. A shard is decoded together."""
    settings: LabelStage = ctx.settings
    requests = [
        SampleRequest(tuple(prompt_ids(tokenizer, problem.question, ctx.config.model)), (ctx.seed, 0, int(problem.id, 16), sample))
        for problem in problems
        for sample in range(settings.samples)
    ]
    temperatures = _temperatures(settings)
    pieces: list[tuple[float, list[int]]] = []  # temperature, places
    for turn, temperature in enumerate(temperatures):
        places = range(turn, len(requests), len(temperatures))
        together = batches([requests[place] for place in places], settings.batch_size)
        pieces += [(temperature, [places[index] for index in rows]) for rows in together]

    def write(piece: tuple[float, list[int]]) -> list[Written]:
        done = generator.generate([requests[place] for place in piece[1]], replace(params, temperature=piece[0]))
        return [Written(text=decode(tokenizer, one.tokens, params.stop_ids)) for one in done]

    with ctx.tracker.progress(f"{ctx.name}: sample", len(requests)) as advance:
        written = shards.rows("sample", pieces, write, Written, advance)
    text = dict(zip(chain.from_iterable(places for _, places in pieces), (row.text for row in written), strict=True))
    return [text[place] for place in range(len(requests))]


def _temperatures(settings: LabelStage) -> list[float]:
    return settings.temperatures or [settings.temperature]


def _solutions(ctx: StageContext, problems: Sequence[Problem], texts: Sequence[str]) -> tuple[list[Sampled], int]:
    """The solutions with a step, equal ones to one problem once; and how many have none. Problems before the boundary are held out."""
    settings: LabelStage = ctx.settings
    boundary = held_out_count(len(problems), settings.held_out_fraction)
    temperatures = _temperatures(settings)
    rows: dict[tuple[str, str], Sampled] = {}
    empty = 0
    for index, text in enumerate(texts):
        place = index // settings.samples
        problem = problems[place]
        steps, answer = split_answer(text, ctx.config.model)
        empty += not steps
        if steps:
            correct = None
            if problem.answer is not None:
                correct = answer is not None and same_answer(answer, problem.answer, problem.question)
            split: Literal["train", "held_out"] = "held_out" if place < boundary else "train"
            rows.setdefault((problem.id, text), Sampled(problem, steps, answer, correct, split, temperatures[index % len(temperatures)]))
    if not rows:
        raise UserError(f"{ctx.name}: the policy wrote no step at all", fix="train the policy longer, or raise label.max_tokens")
    return list(rows.values()), empty


def _exact(row: Sampled) -> Labels:
    return exact_labels([check_equations(step) for step in row.steps], row.correct)


def _balanced(solutions: Sequence[Sampled], rng: random.Random) -> list[Sampled]:
    """Without as many right solutions of the training split as there are more of them than wrong ones. Held-out and unknown ones stay."""
    right = [place for place, row in enumerate(solutions) if row.split == "train" and row.correct]
    wrong = sum(row.split == "train" and row.correct is False for row in solutions)
    dropped = set(rng.sample(right, max(0, len(right) - wrong)))
    return [row for place, row in enumerate(solutions) if place not in dropped]


def _judged(ctx: StageContext, shards: Shards, teacher: Teacher, part: str, asked: Sequence[tuple[Problem, Sequence[str]]]) -> list[Labels]:
    """The teacher's labels of each solution's steps."""

    def ask(group: Sequence[tuple[Problem, Sequence[str]]]) -> list[Verdicts]:
        labels = teacher.judge_steps([problem for problem, _ in group], [steps for _, steps in group], seed=ctx.seed)
        return [Verdicts(steps=tuple(row)) for row in labels]

    groups = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
    with ctx.tracker.progress(f"{ctx.name}: {part}", len(asked)) as advance:
        return [list(row.steps) for row in shards.asked(part, teacher, groups, ask, Verdicts, advance, answers=CHUNK)]


def _perturb(
    ctx: StageContext, shards: Shards, teacher: Teacher, rows: Sequence[SteppedSolution], problems: dict[str, Problem]
) -> list[SteppedSolution]:
    """Right beginnings of training solutions whose last step is changed in one place. Held-out rows stay what the policy itself writes."""
    settings: LabelStage = ctx.settings
    rng = random.Random(f"perturbed/{ctx.seed}")
    wanted: dict[tuple[str, tuple[str, ...]], SteppedSolution] = {}
    for row in rows:
        right = next((place for place, label in enumerate(row.labels) if label is None or label < 0.5), len(row.labels))
        if row.split == "train" and right:
            for _ in range(settings.perturbed):
                last = rng.randrange(right)
                changed = perturbed(row.steps[last], " ".join((row.question, *row.steps[:last])), rng)
                if changed is not None:
                    wanted[row.problem_id, (*row.steps[:last], changed)] = row
    verdicts = _judged(ctx, shards, teacher, "perturb", [(problems[problem], written) for problem, written in wanted])
    out = []
    for labels, ((_, written), row) in zip(verdicts, wanted.items(), strict=True):
        if any(label is not None for label in labels):
            fields = {"steps": written, "labels": tuple(labels), "labeller": f"{row.labeller}, perturbed"}
            out.append(row.model_copy(update=fields | {"answer": None, "correct": None, "temperature": None}))
    return out


def _completed(
    ctx: StageContext,
    shards: Shards,
    method: str,
    generator: Generator,
    params: SamplingParams,
    tokenizer: Tokenizer,
    solutions: Sequence[Sampled],
) -> list[Labels]:
    """The rates of each solution's steps, from completions of the policy itself against training answers."""
    settings: LabelStage = ctx.settings

    def measure(numbers: Sequence[int]) -> list[Verdicts]:
        rows = []
        for number in numbers:
            row = solutions[number]
            key = (ctx.seed, MONTE_CARLO, number)
            complete = completer(generator, params, tokenizer, ctx.config.model, row.problem.question, key, settings.completions)
            arguments = row.steps, str(row.problem.answer), complete, row.answer, row.problem.question
            rates = bisection(*arguments, settings.threshold or 0.0)[1] if method == "bisection" else monte_carlo(*arguments)
            rows.append(Verdicts(steps=tuple(rates)))
        return rows

    every = range(len(solutions))
    pieces = [every[start : start + COMPLETED_TOGETHER] for start in range(0, len(every), COMPLETED_TOGETHER)]
    with ctx.tracker.progress(f"{ctx.name}: {method}", len(solutions)) as advance:
        return [list(row.steps) for row in shards.rows(method, pieces, measure, Verdicts, advance)]


def _measured(method: str, rates: Sequence[Labels], equations: Sequence[Labels] | None, threshold: float | None) -> list[Labels]:
    """Labels from rates of completions, and from equations where the method looks at them. `threshold` None: soft, where it can be."""
    if method == "bisection":
        return [first_error_labels(row, threshold or 0.0) for row in rates]
    if equations is not None:
        rates = [calculator_labels(*pair) for pair in zip(equations, rates, strict=True)]
    return [row if threshold is None else hard_labels(row, threshold) for row in rates]


def completer(
    generator: Generator, params: SamplingParams, tokenizer: Tokenizer, model: ModelSection, question: str, key: tuple[int, ...], count: int
) -> Callable[[Sequence[Sequence[str]]], list[list[str | None]]]:
    """Prefixes -> the answers of `count` completions each. Noise hangs on `key`, the prefix's length and the sample, so any two methods
    that ask for the same prefix get the same completions. Each prefix is prefilled once for all of them."""
    start = prompt_ids(tokenizer, question, model)

    def complete(prefixes: Sequence[Sequence[str]]) -> list[list[str | None]]:
        requests = []
        for prefix in prefixes:
            ids = prefix_ids(tokenizer, start, prefix, model)
            requests += [SampleRequest(ids, (*key, len(prefix), sample)) for sample in range(count)]
        answers = [split_answer(decode(tokenizer, one.tokens, params.stop_ids), model)[1] for one in generator.generate(requests, params)]
        return [answers[place * count : (place + 1) * count] for place in range(len(prefixes))]

    return complete
