"""Rounds of evolution: each parent is changed by one operation, what failed or repeats is set aside, the rest joins the pool."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from rlef.config import EvolveStage
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.decontamination import RENUMBERED, Duplicates, HeldOut, Match
from rlef.evolution.elimination import eliminated_by
from rlef.evolution.operations import choose_operations
from rlef.evolution.teachers import Teacher, account, overlapped, teaching
from rlef.records import Contamination, Eliminated, Problem, read_jsonl, write_jsonl
from rlef.sources import read_problems
from rlef.stages.context import StageContext

STAGE_VERSION = 2
CHUNK = 64  # parents a call of the teacher, for the progress bar


def run(ctx: StageContext) -> dict:
    """Writes evolved.jsonl (with lineage), eliminated.jsonl (each with its rule) and contamination.jsonl (beside the test it repeats)."""
    with teaching(ctx.config, ctx.journal, ctx.settings.operations_file) as teacher:
        return _evolve(ctx, teacher) | account(teacher)


def _evolve(ctx: StageContext, teacher: Teacher) -> dict:
    settings: EvolveStage = ctx.settings
    seeds = read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem)
    tests = list(read_jsonl(ctx.inputs["problems"] / "held_out.jsonl", Problem))
    for file in ctx.config.held_out_files():
        tests += read_problems(file)[0]
    held_out = HeldOut(tests, run=settings.held_out_run, share=settings.held_out_share)
    nearest = _neighbours(settings, tests, ctx.config.launch.device)
    seen = Duplicates(settings.near_duplicate_threshold)
    for seed in seeds:
        seen.check_and_add(seed)

    # A failed evolution leaves its parent in the pool for the next round.
    pool: list[Problem] = list(seeds)
    eliminated: list[Eliminated] = []
    leaks: list[Contamination] = []
    rules: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    made = 0
    total = settings.rounds * (settings.per_round or len(seeds))
    with ctx.tracker.progress(ctx.name, total) as advance:
        for number in range(1, settings.rounds + 1):
            rng = random.Random(f"parents/{ctx.seed}/{number}")
            wanted = settings.per_round or len(seeds)
            parents = rng.sample(pool, wanted) if wanted <= len(pool) else rng.choices(pool, k=wanted)
            domains = [parent.domain for parent in parents]
            chosen = choose_operations(domains, teacher.operations, settings.weights, seed=f"operations/{ctx.seed}/{number}")
            calls = (
                partial(_children, teacher, parents[start : start + CHUNK], chosen[start : start + CHUNK], number, ctx.seed * 10**6 + start)
                for start in range(0, wanted, CHUNK)
            )
            for group in overlapped(teacher, calls, CHUNK):
                near = nearest([child.question if child is not None else "" for _, child, _ in group])
                for (parent, child, same), neighbour in zip(group, near, strict=True):
                    made += 1
                    if child is None:
                        rules["no_answer"] += 1
                        continue
                    rule, detail = _failed(teacher, settings, parent, child, same), ""
                    if rule is None and (leak := _leak(held_out, child, neighbour, settings.drop_renumbered)):
                        leaks.append(leak)
                        rule, detail = (leak.rule, leak.test_id) if leak.dropped else (None, "")
                    if rule is None:
                        rule, detail = seen.check_and_add(child) or (None, "")
                    if rule is not None:
                        rules[rule] += 1
                        eliminated.append(Eliminated(problem=child, rule=rule, detail=detail))
                        continue
                    assert child.lineage is not None
                    operations[child.lineage.operation] += 1
                    pool.append(child)
                advance(len(group))
            kept = pool[len(seeds) :]
            ctx.tracker.log(
                {
                    "evolve/kept": len(kept),
                    "evolve/eliminated": sum(rules.values()),
                    "evolve/mean_depth": sum(problem.depth or 0 for problem in kept) / max(1, len(kept)),
                    "evolve/mean_words": sum(len(problem.question.split()) for problem in kept) / max(1, len(kept)),
                },
                number,
            )
    evolved = pool[len(seeds) :]
    write_jsonl(ctx.folder / "evolved.jsonl", evolved)
    write_jsonl(ctx.folder / "eliminated.jsonl", eliminated)
    write_jsonl(ctx.folder / "contamination.jsonl", leaks)
    depths = Counter(problem.depth for problem in evolved if problem.depth is not None)
    ctx.tracker.table(
        "evolved", ["operation", "round", "question"],
        [[problem.lineage.operation, problem.lineage.round, problem.question] for problem in evolved[:200] if problem.lineage],
    )  # fmt: skip
    return {
        "made": made,
        "kept": len(evolved),
        "eliminated": dict(rules),
        "renumbered": sum(not leak.dropped for leak in leaks),
        "operations": dict(operations),
        "depths": {str(depth): depths[depth] for depth in sorted(depths)},
        "flawed": sum(problem.answer is None for problem in evolved) / max(1, len(evolved)) if teacher.name == "symbolic" else None,
    }


def _failed(teacher: Teacher, settings: EvolveStage, parent: Problem, child: Problem, same: bool) -> str | None:
    """The rule of elimination, which sees texts alone: it must not profit from what a symbolic teacher knows."""
    assert child.lineage is not None
    chat = isinstance(teacher, ChatTeacher)
    return eliminated_by(
        parent.question,
        child.question,
        judged_same=same,
        require_question=settings.require_question and child.domain == "math",
        template=teacher.templates[parent.domain][child.lineage.operation] if chat else "",
    )


def _leak(held_out: HeldOut, child: Problem, neighbour: Match | None, drop_renumbered: bool) -> Contamination | None:
    """The held-out problem that the child repeats, if any."""
    match = held_out.overlap(child)
    kept = match is not None and match.rule == RENUMBERED and not drop_renumbered
    if neighbour is not None and (match is None or kept):
        match, kept = neighbour, False
    if match is None:
        return None
    return Contamination(
        evolved_id=child.id,
        test_id=match.test.id,
        evolved=child.question,
        test=match.test.question,
        rule=match.rule,
        ratio=round(match.ratio, 4),
        dropped=not kept,
    )


def _neighbours(settings: EvolveStage, tests: Sequence[Problem], device: str) -> Callable[[Sequence[str]], Sequence[Match | None]]:
    """For texts their nearest tests by the embedding model; without one nothing, and torch is not loaded."""
    if settings.embedding_model is None:
        return lambda texts: [None] * len(texts)
    from rlef.evolution.neighbours import Neighbours
    from rlef.models import pick_device

    return Neighbours(tests, settings.embedding_model, settings.embedding_threshold, pick_device(device)).nearest


def _children(
    teacher: Teacher, parents: Sequence[Problem], operations: Sequence[str], number: int, seed: int
) -> list[tuple[Problem, Problem | None, bool]]:
    """Parent, child, and whether the teacher takes both for the same."""
    children = teacher.evolve(parents, operations, round=number, seed=seed)
    return list(zip(parents, children, _judged_same(teacher, parents, children), strict=True))


def _judged_same(teacher: Teacher, parents: Sequence[Problem], children: Sequence[Problem | None]) -> list[bool]:
    """The chat teacher judges each child against its parent; the symbolic one must not, since it would know."""
    if not isinstance(teacher, ChatTeacher):
        return [False] * len(children)
    pairs = [(parent.question, child.question if child is not None else "") for parent, child in zip(parents, children, strict=True)]
    return teacher.judge_same(pairs)
