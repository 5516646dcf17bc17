"""Labels for the reward models: ranked lists of instructions, and the policy's own solutions with every step judged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Literal

from reward_models.records import RankedItem, RankedList, SteppedSolution
from rlef.answers import canonical, same_answer
from rlef.config import LabelStage
from rlef.errors import UserError
from rlef.evolution.labels import calculator_labels, monte_carlo, perturbed, ranked_items
from rlef.evolution.teachers import Teacher, account, overlapped, teaching
from rlef.models import decode, load_policy, load_tokenizer, model_folder, pick_device, prompt_ids, stop_ids
from rlef.prompts import split_answer
from rlef.records import Problem, read_jsonl, write_jsonl
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.stages.context import StageContext
from rlef.symbolic import SymbolicTeacher

STAGE_VERSION = 1
CHUNK = 64
MONTE_CARLO = 1  # second part of the noise key of completions; solutions have 0


def run(ctx: StageContext) -> dict:
    """Writes rankings.jsonl and steps.jsonl, each row with its split."""
    seeds = list(read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem))
    evolved = list(read_jsonl(ctx.inputs["evolved"] / "evolved.jsonl", Problem)) if "evolved" in ctx.inputs else []
    unsolved = list(read_jsonl(ctx.inputs["prompts"] / "prompts.jsonl", Problem)) if "prompts" in ctx.inputs else evolved
    with teaching(ctx.config, ctx.journal) as teacher:
        lists = _rank(ctx, teacher, seeds + evolved)
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
        **spent,
    }


def _held_out(count: int, fraction: float) -> int:
    return min(count - 1, max(1, round(count * fraction)))


def _rank(ctx: StageContext, teacher: Teacher, pool: Sequence[Problem]) -> list[RankedList]:
    """Versions of each chosen instruction, judged and ranked. With a symbolic teacher the held-out lists have held-out wordings."""
    settings: LabelStage = ctx.settings
    rng = random.Random(f"lists/{ctx.seed}")
    sound = [problem for problem in pool if problem.truth is None or problem.truth.flaw is None]
    chosen = rng.sample(sound, min(settings.lists, len(sound)))
    boundary = _held_out(len(chosen), settings.held_out_fraction)
    rows = []
    splits: list[Literal["train", "held_out"]] = ["held_out" if place < boundary else "train" for place in range(len(chosen))]
    calls = (partial(_ranked, teacher, problem, settings.list_size, ctx.seed, split) for problem, split in zip(chosen, splits, strict=True))
    with ctx.tracker.progress(f"{ctx.name}: rank", len(chosen)) as advance:
        for problem, split, items in zip(chosen, splits, overlapped(teacher, calls, settings.list_size), strict=True):
            advance(1)
            if len({item.rank for item in items}) >= 2:  # nothing to learn from a list of equals
                rows.append(RankedList(seed_id=problem.id, items=tuple(items), labeller=teacher.name, split=split))
    if len(rows) < 2:
        raise UserError(
            f"{ctx.name}: the judge ranked {len(rows)} lists",
            fix="raise label.lists or list_size, or use a judge that tells instructions apart",
        )
    if all(row.split == "train" for row in rows) or all(row.split == "held_out" for row in rows):
        rows = [row.model_copy(update={"split": "held_out" if place < 1 else "train"}) for place, row in enumerate(rows)]
    return rows


def _ranked(teacher: Teacher, problem: Problem, size: int, seed: int, split: Literal["train", "held_out"]) -> list[RankedItem]:
    if isinstance(teacher, SymbolicTeacher):
        versions = teacher.versions(problem, size, seed=seed, phrasing=split)
    else:
        versions = teacher.versions(problem, size, seed=seed)
    return ranked_items(versions, teacher.judge_instructions(versions, seed=seed))


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
    # The calculator needs training answers, which evolved problems do not have.
    pool = [problem for problem in seeds if problem.answer is not None] if method == "calculator" else unsolved
    chosen = random.Random(f"solutions/{ctx.seed}").sample(pool, min(settings.count, len(pool)))
    boundary = _held_out(len(chosen), settings.held_out_fraction)

    # 1. Sample from the policy that the reward model will judge.
    folder = model_folder(ctx.inputs["policy"])
    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, dtype=ctx.config.model.dtype, device=pick_device(ctx.config.launch.device))
    stops = stop_ids(tokenizer, policy)
    generator = HFGenerator(policy, int(tokenizer.pad_token_id), settings.batch_size)
    params = SamplingParams(settings.max_tokens, settings.temperature, stops)
    requests = [
        SampleRequest(tuple(prompt_ids(tokenizer, problem.question, ctx.config.model)), (ctx.seed, 0, int(problem.id, 16), sample))
        for problem in chosen
        for sample in range(settings.samples)
    ]
    with ctx.tracker.progress(f"{ctx.name}: sample", len(requests)) as advance:
        completions = generator.generate(requests, params, advance)
    rows: dict[tuple[str, str], tuple[int, Problem, list[str], str | None]] = {}
    empty = 0
    for index, completion in enumerate(completions):
        place = index // settings.samples
        text = decode(tokenizer, completion.tokens, stops)
        steps, answer = split_answer(text, ctx.config.model)
        empty += not steps
        if steps:  # equal answers to one problem are kept once
            rows.setdefault((chosen[place].id, text), (place, chosen[place], steps, answer))
    if not rows:
        raise UserError(f"{ctx.name}: the policy wrote no step at all", fix="train the policy longer, or raise label.max_tokens")

    # 2. Judge.
    solutions = list(rows.values())
    problems, written = [problem for _, problem, _, _ in solutions], [steps for _, _, steps, _ in solutions]
    if method == "calculator":
        labels = _calculate(ctx, generator, params, tokenizer, solutions)
    else:
        if method == "symbolic" and not isinstance(teacher, SymbolicTeacher):
            raise UserError(f"{ctx.name}.method: symbolic needs teacher.kind: symbolic", fix="use judge or calculator")
        labels = []
        calls = (
            partial(teacher.judge_steps, problems[start : start + CHUNK], written[start : start + CHUNK], seed=ctx.seed)
            for start in range(0, len(solutions), CHUNK)
        )
        with ctx.tracker.progress(f"{ctx.name}: judge", len(solutions)) as advance:
            for judged in overlapped(teacher, calls, CHUNK):
                labels += judged
                advance(len(judged))
    labeller = {"calculator": "calculator+monte_carlo"}.get(method, teacher.name)
    out, unjudged = [], 0
    for (place, problem, steps, answer), row in zip(solutions, labels, strict=True):
        if all(label is None for label in row):
            unjudged += 1
            continue
        correct = None
        if problem.answer is not None:
            correct = answer is not None and same_answer(answer, problem.answer, problem.question)
        out.append(
            SteppedSolution(
                problem_id=problem.id,
                question=problem.question,
                steps=tuple(steps),
                labels=tuple(row),
                labeller=labeller,
                samples=settings.completions if method == "calculator" else None,
                seed=ctx.seed,
                depth=problem.depth,
                answer=canonical(answer, problem.question) if answer is not None else None,
                correct=correct,
                split="held_out" if place < boundary else "train",
            )
        )
    if not out:
        raise UserError(f"{ctx.name}: the judge judged no step", fix="use another teacher, or method: calculator")
    if settings.perturbed and method != "calculator":
        out += _perturb(ctx, teacher, out, {problem.id: problem for problem in problems})
    return out, {"method": method, "without_steps": empty, "unjudged": unjudged}


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


def _calculate(ctx: StageContext, generator: HFGenerator, params: SamplingParams, tokenizer, solutions) -> list[list[float | None]]:
    """Equations by calculator, the rest by completions of the policy itself, against training answers."""
    settings: LabelStage = ctx.settings
    model = ctx.config.model
    labels = []
    with ctx.tracker.progress(f"{ctx.name}: Monte Carlo", len(solutions)) as advance:
        for number, (_, problem, steps, final) in enumerate(solutions):

            def complete(prefixes: Sequence[Sequence[str]], problem: Problem = problem, number: int = number) -> list[list[str | None]]:
                start = prompt_ids(tokenizer, problem.question, model)
                requests = []
                for prefix in prefixes:
                    text = model.step_delimiter.join(prefix) + model.step_delimiter
                    ids = (*start, *tokenizer.encode(text, add_special_tokens=False))
                    requests += [
                        SampleRequest(ids, (ctx.seed, MONTE_CARLO, number, len(prefix), sample)) for sample in range(settings.completions)
                    ]
                answers = [
                    split_answer(decode(tokenizer, one.tokens, params.stop_ids), model)[1] for one in generator.generate(requests, params)
                ]
                return [answers[place * settings.completions : (place + 1) * settings.completions] for place in range(len(prefixes))]

            success = monte_carlo(steps, str(problem.answer), complete, final, problem.question)
            labels.append(calculator_labels(steps, success))
            advance(1)
    return labels
