"""Labels for the reward models: ranked lists of instructions, and the policy's own solutions with every step judged."""

from __future__ import annotations

from rlef.evolution.teachers import account, teaching
from rlef.records import Problem, read_jsonl, write_jsonl
from rlef.stages.context import StageContext
from rlef.stages.rankings import log_ranked, rank
from rlef.stages.shards import Shards
from rlef.stages.step_labels import judge

STAGE_VERSION = 2


def run(ctx: StageContext) -> dict:
    """Writes rankings.jsonl and steps.jsonl, each row with its split."""
    seeds = list(read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem))
    evolved = list(read_jsonl(ctx.inputs["evolved"] / "evolved.jsonl", Problem)) if "evolved" in ctx.inputs else []
    unsolved = list(read_jsonl(ctx.inputs["prompts"] / "prompts.jsonl", Problem, may_be_empty=True)) if "prompts" in ctx.inputs else evolved
    shards = Shards(ctx, ctx.settings.batch_size, ctx.config.teacher.batch_size)
    with teaching(ctx.config, ctx.journal if shards.main else None, ctx.operations_file) as teacher:
        lists, ranking = rank(ctx, teacher, seeds + evolved) if shards.main else ([], {})
        steps, counts = judge(ctx, shards, teacher, seeds, unsolved or seeds)
        spent = account(teacher)
    if not shards.main:
        return {}
    write_jsonl(ctx.folder / "rankings.jsonl", lists)
    write_jsonl(ctx.folder / "steps.jsonl", steps)
    log_ranked(ctx, lists, seeds + evolved)
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
