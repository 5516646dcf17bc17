"""Rounds of evolution: each parent is changed by one operation, what failed or repeats is set aside, the rest joins the pool."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlef.config import EvolveStage
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.operations import Line, choose_operations, in_band, line_of
from rlef.evolution.sieve import Child, Sieve
from rlef.evolution.teachers import Teacher, account, is_endpoint, overlapped, teaching
from rlef.records import Eliminated, Problem, read_jsonl, write_jsonl
from rlef.sources import read_problems
from rlef.stages.context import StageContext

if TYPE_CHECKING:
    from rlef.rl.difficulty import Difficulty

STAGE_VERSION = 3
CHUNK = 64  # parents a call of the teacher, for the progress bar
ENDPOINT_CHUNK = 4  # the same where children are judged while others are still being written; it changes no request
OUTSIDE = "outside_band"
SHOWN = 200  # rows of the table for W&B


def run(ctx: StageContext) -> dict:
    """Writes evolved.jsonl (with lineage), eliminated.jsonl (each with its rule) and contamination.jsonl (beside the test it repeats)."""
    with teaching(ctx.config, ctx.journal, ctx.operations_file) as teacher:
        return _evolve(ctx, teacher) | account(teacher)


def _evolve(ctx: StageContext, teacher: Teacher) -> dict:
    settings: EvolveStage = ctx.settings
    seeds = list(read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem))
    earlier = read_pool(ctx.inputs["pool"]) if "pool" in ctx.inputs else []
    tests = list(read_jsonl(ctx.inputs["problems"] / "held_out.jsonl", Problem, may_be_empty=True))
    for file in ctx.config.held_out_files():
        tests += read_problems(file)[0]
    sieve = Sieve(settings, teacher, tests, [*seeds, *earlier], ctx.config.launch.device)
    difficulty = _difficulty(ctx)
    # Without a policy to ask, only what comes with a pass rate can be a parent by feedback.
    rates = {problem.id: problem.pass_rate for problem in earlier} if difficulty is None else {}

    # A failed evolution leaves its parent in the pool for the next round.
    pool: list[Problem] = [*seeds, *earlier]
    kept: list[Problem] = []
    curve: dict[str, dict[str, float]] = {}
    operations: Counter[str] = Counter()
    made = 0
    wanted = settings.per_round or len(seeds)
    chunk = ENDPOINT_CHUNK if is_endpoint(teacher) else CHUNK
    first = 1 + max((problem.lineage.round for problem in earlier if problem.lineage), default=0)
    with ctx.tracker.progress(ctx.name, settings.rounds * wanted) as advance:
        for number in range(first, first + settings.rounds):
            # 1. Draw parents, and an operation for each: at random, or by how far the policy solves it.
            rng = random.Random(f"parents/{ctx.seed}/{number}")
            able = pool if settings.choose == "weights" or difficulty else [one for one in pool if rates.get(one.id) is not None]
            parents = rng.sample(able, wanted) if wanted <= len(able) else rng.choices(able, k=wanted)
            lines: list[Line | None] | None = None
            if settings.choose == "feedback":
                _measure(ctx, difficulty, parents, rates)
                lines = [line_of(rate, settings.band) if (rate := rates[parent.id]) is not None else None for parent in parents]
            domains = [parent.domain for parent in parents]
            seed = f"operations/{ctx.seed}/{number}"
            chosen = choose_operations(domains, teacher.operations, settings.weights, seed=seed, lines=lines)

            # 2. Have them evolved, and sift what comes back.
            calls = (
                partial(_children, teacher, parents[start : start + chunk], chosen[start : start + chunk], number, ctx.seed * 10**6 + start)
                for start in range(0, wanted, chunk)
            )
            passed: list[Problem] = []
            for group in overlapped(teacher, calls, chunk):
                made += len(group)
                passed += sieve.pass_on(group)
                advance(len(group))

            # 3. By feedback, keep what the policy can learn from. The others are parents all the same: their children may fit.
            if difficulty is not None:
                _measure(ctx, difficulty, passed, rates)
                passed = [child.model_copy(update={"pass_rate": rates[child.id]}) for child in passed]
            for child in passed:
                pool.append(child)
                if _fits(child, settings):
                    kept.append(child)
                    assert child.lineage is not None
                    operations[child.lineage.operation] += 1
                else:
                    sieve.eliminate(child, OUTSIDE, f"{child.pass_rate:.3f}")
            curve[str(number)] = _curve(passed, settings)
            ctx.tracker.log({f"evolve/{name}": value for name, value in (_totals(kept, sieve) | curve[str(number)]).items()}, number)

    write_jsonl(ctx.folder / "evolved.jsonl", kept)
    write_jsonl(ctx.folder / "eliminated.jsonl", sieve.eliminated)
    write_jsonl(ctx.folder / "contamination.jsonl", sieve.leaks)
    depths = Counter(problem.depth for problem in kept if problem.depth is not None)
    log_evolved(ctx, kept, pool)
    return {
        "made": made,
        "kept": len(kept),
        "eliminated": dict(sieve.rules),
        "renumbered": sum(not leak.dropped for leak in sieve.leaks),
        "operations": dict(operations),
        "depths": {str(depth): depths[depth] for depth in sorted(depths)},
        "flawed": sum(problem.answer is None for problem in kept) / max(1, len(kept)) if teacher.name == "symbolic" else None,
        "rounds": curve,
    }


def log_evolved(ctx: StageContext, kept: Sequence[Problem], pool: Sequence[Problem]) -> None:
    """The kept instructions beside their parents, as many of each round."""
    questions = {problem.id: problem.question for problem in pool}
    rounds: dict[int, list[list]] = defaultdict(list)
    for one in kept:
        if (made := one.lineage) is not None:
            rounds[made.round].append([made.round, made.operation, questions.get(made.parent), one.question, one.depth, one.pass_rate])
    shown = [row for rows in rounds.values() for row in rows[: SHOWN // len(rounds)]]
    ctx.tracker.table("evolved", ("round", "operation", "parent", "evolved", "depth", "pass_rate"), shown)


def read_pool(folder: Path) -> list[Problem]:
    """What an evolve stage kept, and what it set aside only for being too easy or too hard for the policy of then."""
    kept = read_jsonl(folder / "evolved.jsonl", Problem, may_be_empty=True)
    dropped = read_jsonl(folder / "eliminated.jsonl", Eliminated, may_be_empty=True) if (folder / "eliminated.jsonl").is_file() else []
    return [*kept, *(row.problem for row in dropped if row.rule == OUTSIDE)]


def _difficulty(ctx: StageContext) -> Difficulty | None:
    """None where operations are drawn at random, or parents come with their pass rates; torch is not loaded then."""
    if ctx.settings.choose == "weights" or "policy" not in ctx.inputs:
        return None
    from rlef.rl.difficulty import Difficulty

    return Difficulty(ctx.inputs["policy"], ctx.inputs.get("prm"), ctx.settings, ctx.config)


def _measure(ctx: StageContext, difficulty: Difficulty | None, problems: Sequence[Problem], rates: dict[str, float | None]) -> None:
    """Add the pass rates that are not known yet."""
    new = list({problem.id: problem for problem in problems if problem.id not in rates}.values())
    if difficulty is not None and new:
        with ctx.tracker.progress(f"{ctx.name}: measure", len(new) * ctx.settings.samples) as advance:
            rates |= zip([problem.id for problem in new], difficulty.measure(new, advance), strict=True)


def _fits(child: Problem, settings: EvolveStage) -> bool:
    return settings.keep_outside or child.pass_rate is None or in_band(child.pass_rate, settings.band)


def _totals(kept: Sequence[Problem], sieve: Sieve) -> dict[str, float]:
    return {
        "kept": len(kept),
        "eliminated": sieve.rules.total(),
        "mean_depth": sum(problem.depth or 0 for problem in kept) / max(1, len(kept)),
        "mean_words": sum(len(problem.question.split()) for problem in kept) / max(1, len(kept)),
    }


def _curve(children: Sequence[Problem], settings: EvolveStage) -> dict[str, float]:
    """How hard a round's children are for the policy: mean pass rate and the share within the band."""
    rates = [child.pass_rate for child in children if child.pass_rate is not None]
    if not rates:
        return {}
    return {"pass_rate": sum(rates) / len(rates), "in_band": sum(in_band(rate, settings.band) for rate in rates) / len(rates)}


def _children(teacher: Teacher, parents: Sequence[Problem], operations: Sequence[str], number: int, seed: int) -> list[Child]:
    children = teacher.evolve(parents, operations, round=number, seed=seed)
    return list(zip(parents, children, _judged_same(teacher, parents, children), strict=True))


def _judged_same(teacher: Teacher, parents: Sequence[Problem], children: Sequence[Problem | None]) -> list[bool]:
    """The chat teacher judges each child against its parent; the symbolic one must not, since it would know."""
    if not isinstance(teacher, ChatTeacher):
        return [False] * len(children)
    asked = {place: (parents[place].question, child.question) for place, child in enumerate(children) if child is not None}
    same = dict(zip(asked, teacher.judge_same(list(asked.values())), strict=True))
    return [same.get(place, False) for place in range(len(children))]
