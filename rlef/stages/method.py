"""Auto Evol-Instruct: the optimiser reads which evolutions failed and writes better templates; the one that fails least takes the place.

One operation after another; a method is the templates of all of them. No held-out problem is ever looked at.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from reward_models.statistics import paired_difference
from rlef.config import MethodStage
from rlef.errors import UserError
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.method import Parents, Trial, failure_rate, goes_on, propose, split_parents, try_out, winner
from rlef.evolution.operations import Templates, operations_to_improve, write_operations
from rlef.evolution.teachers import account, overlapped, teaching
from rlef.records import MethodCandidate, Problem, read_jsonl, write_jsonl
from rlef.stages.context import StageContext

STAGE_VERSION = 1
CHUNK = 32  # parents a call of the teacher


def run(ctx: StageContext) -> dict:
    """Writes operations.yaml (the best method), versions/<number>.yaml (all; 0 is the start) and history.jsonl (a row a candidate)."""
    with teaching(ctx.config, ctx.journal, ctx.settings.operations_file) as teacher:
        assert isinstance(teacher, ChatTeacher)  # the schema sees to it
        return improve(ctx, teacher) | account(teacher)


def improve(ctx: StageContext, teacher: ChatTeacher) -> dict:
    """Each operation in turn, step by step, until steps or patience are used up; then first and last version on fresh parents."""
    settings: MethodStage = ctx.settings
    seeds = list(read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem))
    operations = operations_to_improve(teacher.operations, settings.operations, {seed.domain for seed in seeds})
    parents = {domain: _parents(ctx, teacher, seeds, domain) for domain, _ in operations}

    versions: list[Templates] = [teacher.templates]
    best = 0
    history: list[MethodCandidate] = []
    done = 0
    with ctx.tracker.progress(ctx.name, len(operations) * settings.steps) as advance:
        for domain, operation in operations:
            kept: list[bool] = []
            while goes_on(kept, settings.steps, settings.patience):
                method = teacher.with_templates(versions[best])
                rows, proposed = _step(
                    ctx, method, domain, operation, parents[domain], step=len(kept) + 1, parent=best, number=len(versions)
                )
                history += rows
                versions += proposed
                won = next((row for row in rows if row.kept), None)
                best = best if won is None or won.number is None else won.number
                kept.append(won is not None)
                done += 1
                rates = [rate for row in rows for rate in (row.failure_rate, row.incumbent_rate) if rate is not None]
                if rates:
                    ctx.tracker.log({"method/failure_rate": min(rates), "method/kept": sum(row.kept for row in history)}, done)
                advance(1)
            advance(settings.steps - len(kept))

    at_the_end = _at_the_end(ctx, teacher, versions[0], versions[best], operations, parents)
    write_operations(ctx.folder / "operations.yaml", versions[best])
    for number, templates in enumerate(versions):
        write_operations(ctx.folder / "versions" / f"{number}.yaml", templates)
    write_jsonl(ctx.folder / "history.jsonl", history)
    return at_the_end | {
        "operations": [f"{domain}.{operation}" for domain, operation in operations],
        "steps": done,
        "candidates": len(history),
        "kept": sum(row.kept for row in history),
        "best": best,
        "not_kept": dict(Counter(row.reason for row in history if row.reason is not None)),
    }


def _step(
    ctx: StageContext, teacher: ChatTeacher, domain: str, operation: str, parents: Parents, *, step: int, parent: int, number: int
) -> tuple[list[MethodCandidate], list[Templates]]:
    """Tries to better the teacher's method, version `parent`: a row for each candidate, and the methods among them, from `number` on."""
    settings: MethodStage = ctx.settings
    method = teacher.templates
    seed = f"{ctx.seed}/{domain}.{operation}/{step}"
    about = {"operation": f"{domain}.{operation}", "step": step, "parent": parent}

    # 1. How the method does on a batch. Where nothing failed there is nothing to learn.
    batch = random.Random(f"batch/{seed}").sample(parents.pool, settings.batch)
    (trials,) = _measured(teacher, [method], batch, [operation] * len(batch), f"batch/{seed}")
    if not any(trial.failure for trial in trials):
        return [], []

    # 2. Why evolutions failed, and templates that should mend it.
    candidates = propose(
        teacher,
        domain,
        operation,
        trials,
        count=settings.candidates,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=_number(f"optimiser/{seed}"),
    )
    rows = [
        MethodCandidate(**about, analysis=one.analysis, template=one.template, kept=False, reason=one.reason)
        for one in candidates
        if one.reason is not None
    ]
    valid = [one for one in candidates if one.reason is None]
    proposed: list[Templates] = [{**method, domain: {**method[domain], operation: one.template}} for one in valid]
    if not valid:
        return rows, []

    # 3. The method and what may replace it: the same parents, the same noise. New noise in each step finds out what won by luck.
    judges = parents.development
    measured = _measured(teacher, [method, *proposed], judges, [operation] * len(judges), f"development/{seed}")
    old, *new = [[trial.failure is not None for trial in one] for one in measured]
    won = winner(sum(old), [sum(one) for one in new])
    for place, (one, failed) in enumerate(zip(valid, new, strict=True)):
        reason = "another_was_better" if sum(failed) < sum(old) else "not_better"
        rows.append(
            MethodCandidate(
                **about,
                number=number + place,
                analysis=one.analysis,
                template=one.template,
                kept=place == won,
                reason=reason if place != won else None,
                **failure_rate(measured[place + 1]),
                incumbent_rate=sum(old) / len(old),
                difference=paired_difference(failed, old),
            )
        )
    return rows, proposed


def _at_the_end(
    ctx: StageContext,
    teacher: ChatTeacher,
    first: Templates,
    last: Templates,
    operations: Sequence[tuple[str, str]],
    parents: dict[str, Parents],
) -> dict[str, Any]:
    """The first and the last method on fresh parents, each by one operation in turn. Rates of the search are winners', too good."""
    fresh: list[Problem] = []
    asked: list[str] = []
    for domain, one in parents.items():
        names = [name for other, name in operations if other == domain]
        fresh += one.fresh
        asked += [names[place % len(names)] for place in range(len(one.fresh))]
    measured = _measured(teacher, [first, last] if last != first else [first], fresh, asked, f"fresh/{ctx.seed}")
    before, after = failure_rate(measured[0]), failure_rate(measured[-1])
    failed = [[trial.failure is not None for trial in one] for one in measured]
    return {
        "failure_rate_before": before["failure_rate"],
        "failure_rate_after": after["failure_rate"],
        "before": before,
        "after": after,
        "difference": paired_difference(failed[-1], failed[0]),
        "fresh_parents": all(one.fresh is not one.development for one in parents.values()),
    }


def _parents(ctx: StageContext, teacher: ChatTeacher, seeds: Sequence[Problem], domain: str) -> Parents:
    """The domain's seeds by use. Raises UserError where they are too few."""
    settings: MethodStage = ctx.settings
    own = [seed for seed in seeds if seed.domain == domain]
    parts = split_parents(
        own, development=settings.development, batch=settings.batch, fresh=settings.fresh, seed=f"method/{ctx.seed}/{domain}"
    )
    if parts is None:
        raise UserError(
            f"{ctx.name}: {len(own)} seeds of domain {domain}; batch + development = {settings.batch} + {settings.development} are needed",
            fix=f"give more seeds, or lower {ctx.name}.development, or name operations of another domain in {ctx.name}.operations",
        )
    if parts.fresh is parts.development and teacher.temperature == 0:
        needed = settings.batch + settings.development + settings.fresh
        raise UserError(
            f"{ctx.name}: {len(own)} seeds of domain {domain} leave no fresh parents, and at teacher.temperature 0 there is no fresh noise",
            fix=f"give {needed} seeds (batch + development + fresh), or lower these, or raise teacher.temperature",
        )
    return parts


def _measured(
    teacher: ChatTeacher, methods: Sequence[Templates], parents: Sequence[Problem], operations: Sequence[str], seed: str
) -> list[list[Trial]]:
    """For each method the trials of all parents, each by its operation, with the same noise."""
    parts = [(parents[start : start + CHUNK], operations[start : start + CHUNK], start) for start in range(0, len(parents), CHUNK)]
    calls = (
        partial(try_out, teacher.with_templates(method), group, names, seed=_number(seed) + start)
        for method in methods
        for group, names, start in parts
    )
    groups = overlapped(teacher, calls, CHUNK)
    return [[trial for _ in parts for trial in next(groups)] for _ in methods]


def _number(seed: str) -> int:
    return random.Random(seed).randrange(2**30)
