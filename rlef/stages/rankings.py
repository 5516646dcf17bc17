"""The ranked lists of the label stage: versions of each chosen instruction, judged in several orders, and how far the orders agree."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal

from reward_models.records import RankedItem, RankedList
from rlef.config import LabelStage
from rlef.errors import UserError
from rlef.evolution.labels import held_out_count, ranked_items
from rlef.evolution.ranking import Judged, order_statistics, shown_orders
from rlef.evolution.teachers import Teacher, overlapped
from rlef.records import Problem
from rlef.stages.context import StageContext
from rlef.symbolic import SymbolicTeacher


@dataclass(frozen=True)
class Ranked:
    """Versions of one instruction. `judged`: how each order scored them; empty where each was judged alone."""

    versions: int  # that the judge was asked for
    items: list[RankedItem]
    judged: list[Judged]


def rank(ctx: StageContext, teacher: Teacher, pool: Sequence[Problem]) -> tuple[list[RankedList], dict[str, Any]]:
    """Versions of each chosen instruction, judged and ranked; and what is known of a chat judge's trustworthiness.

    With a symbolic teacher the held-out lists have held-out wordings.
    """
    settings: LabelStage = ctx.settings
    rng = random.Random(f"lists/{ctx.seed}")
    sound = [problem for problem in pool if problem.truth is None or problem.truth.flaw is None]
    chosen = rng.sample(sound, min(settings.lists, len(sound)))
    boundary = held_out_count(len(chosen), settings.held_out_fraction)
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


def log_ranked(ctx: StageContext, lists: Sequence[RankedList], pool: Sequence[Problem], most: int = 40) -> None:
    """The first lists, a row a version: what it was made from, by which operation, its rank and why."""
    made_from = {problem.id: problem for problem in pool}
    rows = []
    for ranked in lists[:most]:
        parent = made_from[ranked.seed_id]
        operation = parent.lineage.operation if parent.lineage is not None else "seed"
        for item in ranked.items:
            scores = " ".join(f"{name} {value:.2f}" for name, value in item.scores.items())
            rows.append([parent.question, operation, item.rank, item.text, scores, item.kind, ranked.split])
    ctx.tracker.table("ranked", ("instruction", "operation", "rank", "version", "scores", "flaw", "split"), rows)
