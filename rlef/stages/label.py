"""Labels for the reward models: ranked lists of instructions, and the policy's own solutions with every step judged."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

from reward_models.records import RankedItem, RankedList, SteppedSolution
from rlef.answers import canonical, same_answer
from rlef.config import COMPLETED, LabelStage, ModelSection
from rlef.errors import UserError
from rlef.evolution.labels import (
    agreement,
    bisection,
    calculator_labels,
    consensus_labels,
    hard_labels,
    monte_carlo,
    perturbed,
    ranked_items,
)
from rlef.evolution.ranking import Judged, order_statistics, shown_orders
from rlef.evolution.teachers import Teacher, account, overlapped, teaching
from rlef.models import Tokenizer, decode, load_policy, load_tokenizer, model_folder, pick_device, prefix_ids, prompt_ids, stop_ids
from rlef.prompts import split_answer
from rlef.records import Problem, read_jsonl, write_jsonl
from rlef.rollout.base import Completion, Generator, SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.rollout.served import ServedGenerator
from rlef.stages.context import StageContext
from rlef.symbolic import SymbolicTeacher

STAGE_VERSION = 1
CHUNK = 64
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


def run(ctx: StageContext) -> dict:
    """Writes rankings.jsonl and steps.jsonl, each row with its split."""
    seeds = list(read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem))
    evolved = list(read_jsonl(ctx.inputs["evolved"] / "evolved.jsonl", Problem)) if "evolved" in ctx.inputs else []
    unsolved = list(read_jsonl(ctx.inputs["prompts"] / "prompts.jsonl", Problem)) if "prompts" in ctx.inputs else evolved
    with teaching(ctx.config, ctx.journal, ctx.operations_file) as teacher:
        lists, ranking = _rank(ctx, teacher, seeds + evolved)
        steps, counts = _judge(ctx, teacher, seeds, unsolved or seeds)
        spent = account(teacher)
    write_jsonl(ctx.folder / "rankings.jsonl", lists)
    write_jsonl(ctx.folder / "steps.jsonl", steps)
    judged = [label for row in steps for label in row.labels if label is not None]
    return {
        "lists": len(lists),
        "solutions": len(steps),
        "right_solutions": sum(bool(row.correct) for row in steps) / max(1, sum(row.correct is not None for row in steps)),
        "right_steps": sum(judged) / max(1, len(judged)),
        **counts,
        **ranking,
        **spent,
    }


def _held_out(count: int, fraction: float) -> int:
    return min(count - 1, max(1, round(count * fraction)))


@dataclass(frozen=True)
class Ranked:
    """Versions of one instruction. `judged`: how each order scored them; empty where each was judged alone."""

    versions: int  # that the judge was asked for
    items: list[RankedItem]
    judged: list[Judged]


def _rank(ctx: StageContext, teacher: Teacher, pool: Sequence[Problem]) -> tuple[list[RankedList], dict[str, Any]]:
    """Versions of each chosen instruction, judged and ranked; and what is known of a chat judge's trustworthiness.

    With a symbolic teacher the held-out lists have held-out wordings.
    """
    settings: LabelStage = ctx.settings
    rng = random.Random(f"lists/{ctx.seed}")
    sound = [problem for problem in pool if problem.truth is None or problem.truth.flaw is None]
    chosen = rng.sample(sound, min(settings.lists, len(sound)))
    boundary = _held_out(len(chosen), settings.held_out_fraction)
    rows, lists = [], []
    splits: list[Literal["train", "held_out"]] = ["held_out" if place < boundary else "train" for place in range(len(chosen))]
    calls = (partial(_ranked, ctx, teacher, problem, split) for problem, split in zip(chosen, splits, strict=True))
    with ctx.tracker.progress(f"{ctx.name}: rank", len(chosen)) as advance:
        for problem, split, ranked in zip(chosen, splits, overlapped(teacher, calls, settings.list_size), strict=True):
            advance(1)
            lists.append(ranked)
            if len({item.rank for item in ranked.items}) >= 2:  # nothing to learn from a list of equals
                rows.append(RankedList(seed_id=problem.id, items=tuple(ranked.items), labeller=teacher.name, split=split))
    trust = {} if isinstance(teacher, SymbolicTeacher) else _trust(ctx, lists)
    if len(rows) < 2:
        flips = trust.get("flip_rate")
        raise UserError(
            f"{ctx.name}: the judge ranked {len(rows)} of {len(lists)} lists"
            + (f"; {flips:.0%} of the pairs that it orders turn round with the order in which it sees them" if flips is not None else ""),
            fix="raise label.lists or list_size, or use a judge that tells instructions apart",
        )
    if all(row.split == "train" for row in rows) or all(row.split == "held_out" for row in rows):
        rows = [row.model_copy(update={"split": "held_out" if place < 1 else "train"}) for place, row in enumerate(rows)]
    return rows, {"ranking": trust} if trust else {}


def _ranked(ctx: StageContext, teacher: Teacher, problem: Problem, split: Literal["train", "held_out"]) -> Ranked:
    settings: LabelStage = ctx.settings
    if isinstance(teacher, SymbolicTeacher):
        versions = teacher.versions(problem, settings.list_size, seed=ctx.seed, phrasing=split)
    else:
        versions = teacher.versions(problem, settings.list_size, seed=ctx.seed)
    orders = shown_orders(len(versions), _orders(ctx), random.Random(f"orders/{ctx.seed}/{problem.id}"))
    if isinstance(teacher, SymbolicTeacher) or not orders:
        alone = teacher.judge_instructions(versions, seed=ctx.seed)
        return Ranked(len(versions), ranked_items(versions, [alone], settings.aspects), [])
    if len(versions) < 2:
        return Ranked(0, [], [])
    qualities = teacher.judge_list(versions, orders, seed=ctx.seed)
    totals = [tuple(quality.total(settings.aspects) if quality is not None else None for quality in row) for row in qualities]
    judged = [Judged(order, row) for order, row in zip(orders, totals, strict=True)]
    return Ranked(len(versions), ranked_items(versions, qualities, settings.aspects), judged)


def _orders(ctx: StageContext) -> int:
    given = ctx.settings.orders
    return given if given is not None else {"openai": 2}.get(ctx.config.teacher.kind, 0)


def _trust(ctx: StageContext, lists: Sequence[Ranked]) -> dict[str, Any]:
    """Of a chat judge: what it did not rank, and how far its orders agree; logged as label/name."""
    pairs = [one.rank == other.rank for ranked in lists for one, other in combinations(ranked.items, 2)]
    trust: dict[str, Any] = {
        "orders": _orders(ctx),
        "equal_lists": sum(len({item.rank for item in ranked.items}) < 2 for ranked in lists),
        "unscored": sum(ranked.versions - len(ranked.items) for ranked in lists),
        "tied_pairs": sum(pairs) / len(pairs) if pairs else None,
    }
    if trust["orders"]:
        trust |= order_statistics([ranked.judged for ranked in lists])
    numbers = {name: value for name, value in trust.items() if not isinstance(value, list)}
    ctx.tracker.log({f"label/{name}": math.nan if value is None else value for name, value in numbers.items()}, len(lists))
    return trust


def _judge(
    ctx: StageContext, teacher: Teacher, seeds: Sequence[Problem], unsolved: Sequence[Problem]
) -> tuple[list[SteppedSolution], dict]:
    """Solutions sampled from the policy, with a label a step.

    To problems that it was not fine-tuned on, wherever the method can judge those: what it knows by heart it gets right, and the reward
    model would learn to tell known prompts from new ones instead of right steps from wrong ones.
    """
    settings: LabelStage = ctx.settings
    method = settings.method
    if method == "auto":
        known = isinstance(teacher, SymbolicTeacher) and all(problem.truth is not None for problem in seeds)
        answered = all(problem.answer is not None for problem in seeds)
        method = "symbolic" if known else "calculator" if answered else "judge"
    # Completions are compared with training answers, which evolved problems do not have.
    pool = [problem for problem in seeds if problem.answer is not None] if method in COMPLETED else unsolved
    if not pool:
        raise UserError(f"{ctx.name}.method: {method} needs problems with known answers", fix="use method: judge")
    chosen = random.Random(f"solutions/{ctx.seed}").sample(pool, min(settings.count, len(pool)))

    # 1. Sample from the policy that the reward model will judge.
    folder = model_folder(ctx.inputs["policy"])
    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, dtype=ctx.config.model.dtype, device=pick_device(ctx.config.launch.device))
    stops = stop_ids(tokenizer, policy)
    generator: Generator = HFGenerator(policy, int(tokenizer.pad_token_id), settings.batch_size)
    if settings.server is not None:
        generator = ServedGenerator(settings.server, str(folder), concurrency=settings.batch_size)
        generator.check(policy, prompt_ids(tokenizer, chosen[0].question, ctx.config.model))
    params = SamplingParams(settings.max_tokens, settings.temperature, stops)
    solutions, empty = _solutions(ctx, tokenizer, stops, chosen, _sample(ctx, generator, params, tokenizer, chosen))
    counts: dict = {"method": method, "without_steps": empty}
    if settings.balance:
        before = len(solutions)
        solutions = _balanced(solutions, random.Random(f"balance/{ctx.seed}"))
        counts["balanced_away"] = before - len(solutions)
        if all(row.split == "held_out" for row in solutions):
            raise UserError(f"{ctx.name}.balance: every training solution is right", fix="use harder problems, or balance: false")

    # 2. Judge.
    if method == "symbolic" and not isinstance(teacher, SymbolicTeacher):
        raise UserError(f"{ctx.name}.method: symbolic needs teacher.kind: symbolic", fix="use judge or calculator")
    judged = _judged(ctx, teacher, solutions) if method not in COMPLETED or settings.consensus else []
    labels, rates, labeller = judged, [None] * len(solutions), teacher.name
    if method in COMPLETED:
        labels, rates = _completed(ctx, method, generator, params, tokenizer, solutions)
        labeller = "calculator+monte_carlo" if method == "calculator" else method
        if settings.consensus:
            counts["agreement"] = agreement(judged, labels)
            labels = [consensus_labels(*pair) for pair in zip(judged, labels, strict=True)]
            labeller = f"{labeller} and {teacher.name}"
    out = []
    for sampled, row, rate in zip(solutions, labels, rates, strict=True):
        if all(label is None for label in row):
            continue
        problem = sampled.problem
        out.append(
            SteppedSolution(
                problem_id=problem.id,
                question=problem.question,
                steps=tuple(sampled.steps),
                labels=tuple(row),
                labeller=labeller,
                rates=None if rate is None else tuple(rate),
                samples=settings.completions if method in COMPLETED else None,
                seed=ctx.seed,
                depth=problem.depth,
                answer=canonical(sampled.answer, problem.question) if sampled.answer is not None else None,
                correct=sampled.correct,
                split=sampled.split,
            )
        )
    if not out:
        raise UserError(f"{ctx.name}: the judge judged no step", fix="use another teacher, or method: calculator")
    counts["unjudged"] = len(solutions) - len(out)
    if settings.perturbed and method not in COMPLETED:
        out += _perturb(ctx, teacher, out, {problem.id: problem for problem in chosen})
    return out, counts


def _sample(
    ctx: StageContext, generator: Generator, params: SamplingParams, tokenizer: Tokenizer, problems: Sequence[Problem]
) -> list[Completion]:
    """`samples` solutions a problem, in order; the temperatures take turns over them all."""
    settings: LabelStage = ctx.settings
    requests = [
        SampleRequest(tuple(prompt_ids(tokenizer, problem.question, ctx.config.model)), (ctx.seed, 0, int(problem.id, 16), sample))
        for problem in problems
        for sample in range(settings.samples)
    ]
    temperatures = settings.temperatures or [settings.temperature]
    out: dict[int, Completion] = {}
    with ctx.tracker.progress(f"{ctx.name}: sample", len(requests)) as advance:
        for turn, temperature in enumerate(temperatures):
            places = range(turn, len(requests), len(temperatures))
            asked = [requests[place] for place in places]
            out |= zip(places, generator.generate(asked, replace(params, temperature=temperature), advance), strict=True)
    return [out[place] for place in range(len(requests))]


def _solutions(
    ctx: StageContext, tokenizer: Tokenizer, stops: tuple[int, ...], problems: Sequence[Problem], completions: Sequence[Completion]
) -> tuple[list[Sampled], int]:
    """The solutions with a step, equal ones to one problem once; and how many have none. Problems before the boundary are held out."""
    settings: LabelStage = ctx.settings
    boundary = _held_out(len(problems), settings.held_out_fraction)
    rows: dict[tuple[str, str], Sampled] = {}
    empty = 0
    for index, completion in enumerate(completions):
        place = index // settings.samples
        problem = problems[place]
        text = decode(tokenizer, completion.tokens, stops)
        steps, answer = split_answer(text, ctx.config.model)
        empty += not steps
        if steps:
            correct = None
            if problem.answer is not None:
                correct = answer is not None and same_answer(answer, problem.answer, problem.question)
            rows.setdefault((problem.id, text), Sampled(problem, steps, answer, correct, "held_out" if place < boundary else "train"))
    if not rows:
        raise UserError(f"{ctx.name}: the policy wrote no step at all", fix="train the policy longer, or raise label.max_tokens")
    return list(rows.values()), empty


def _balanced(solutions: Sequence[Sampled], rng: random.Random) -> list[Sampled]:
    """Without as many right solutions of the training split as there are more of them than wrong ones. Held-out and unknown ones stay."""
    right = [place for place, row in enumerate(solutions) if row.split == "train" and row.correct]
    wrong = sum(row.split == "train" and row.correct is False for row in solutions)
    dropped = set(rng.sample(right, max(0, len(right) - wrong)))
    return [row for place, row in enumerate(solutions) if place not in dropped]


def _judged(ctx: StageContext, teacher: Teacher, solutions: Sequence[Sampled]) -> list[Labels]:
    labels: list[Labels] = []
    groups = [solutions[start : start + CHUNK] for start in range(0, len(solutions), CHUNK)]
    calls = (partial(teacher.judge_steps, [row.problem for row in group], [row.steps for row in group], seed=ctx.seed) for group in groups)
    with ctx.tracker.progress(f"{ctx.name}: judge", len(solutions)) as advance:
        for judged in overlapped(teacher, calls, CHUNK):
            labels += judged
            advance(len(judged))
    return labels


def _perturb(ctx: StageContext, teacher: Teacher, rows: Sequence[SteppedSolution], problems: dict[str, Problem]) -> list[SteppedSolution]:
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
    asked = list(wanted.items())
    out = []
    groups = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
    calls = (
        partial(
            teacher.judge_steps,
            [problems[problem] for (problem, _), _ in group],
            [written for (_, written), _ in group],
            seed=ctx.seed,
        )
        for group in groups
    )
    with ctx.tracker.progress(f"{ctx.name}: perturb", len(asked)) as advance:
        for group, judged in zip(groups, overlapped(teacher, calls, CHUNK), strict=True):
            for labels, ((_, written), row) in zip(judged, group, strict=True):
                if any(label is not None for label in labels):
                    fields = {"steps": written, "labels": tuple(labels), "labeller": f"{row.labeller}, perturbed"}
                    out.append(row.model_copy(update=fields | {"answer": None, "correct": None}))
            advance(len(group))
    return out


def _completed(
    ctx: StageContext, method: str, generator: Generator, params: SamplingParams, tokenizer: Tokenizer, solutions: Sequence[Sampled]
) -> tuple[list[Labels], list[Labels]]:
    """Labels and rates of each solution, from completions of the policy itself against training answers."""
    settings: LabelStage = ctx.settings
    threshold = settings.threshold if settings.threshold is not None or not settings.consensus else 0.0
    labels, rates = [], []
    with ctx.tracker.progress(f"{ctx.name}: {method}", len(solutions)) as advance:
        for number, row in enumerate(solutions):
            complete = completer(
                generator, params, tokenizer, ctx.config.model, row.problem.question, (ctx.seed, MONTE_CARLO, number), settings.completions
            )
            arguments = row.steps, str(row.problem.answer), complete, row.answer, row.problem.question
            if method == "bisection":
                label, rate = bisection(*arguments, threshold or 0.0)
            else:
                rate = monte_carlo(*arguments)
                label = calculator_labels(row.steps, rate) if method == "calculator" else rate
                label = label if threshold is None else hard_labels(label, threshold)
            labels.append(label)
            rates.append(rate)
            advance(1)
    return labels, rates


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
