"""Seeds with solutions, and held-out problems that nothing trains on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rlef.config import ProblemsStage
from rlef.errors import UserError
from rlef.records import BadRow, Domain, Problem, write_jsonl
from rlef.sources import load_problems, read_problems
from rlef.stages.context import StageContext
from rlef.symbolic import make_problems

STAGE_VERSION = 2


def run(ctx: StageContext) -> dict:
    """Writes seeds.jsonl, held_out.jsonl and, where a source had rows that could not be read, bad_rows.jsonl."""
    settings: ProblemsStage = ctx.settings
    bad: list[BadRow] = []
    counts: dict[str, int] = {}
    if settings.source == "symbolic":
        seeds = make_problems(settings.seeds, depths=settings.seed_depths, seed=ctx.seed, split="train", max_number=settings.max_number)
        # The test is the same for every seed of a run: differences between runs are then differences of training.
        held_out = make_problems(
            settings.held_out, depths=settings.held_out_depths, seed=0, split="held_out", max_number=settings.max_number
        )
    else:
        seeds, bad = _from_source(settings, settings.path, settings.split, settings.seeds, settings.domain)
        read = seeds
        seeds = [problem for problem in read if problem.answer is not None or problem.domain != "math"]
        counts["without_answer"] = len(read) - len(seeds)
        files = [settings.held_out_path] if settings.held_out_path else ctx.config.held_out_files()
        held_out = [problem for file in files for problem in read_problems(file, limit=settings.held_out)[0]]
        if not held_out and settings.source == "datasets" and settings.held_out_split:
            held_out, _ = _from_source(settings, settings.path, settings.held_out_split, settings.held_out)
        known = {problem.id for problem in held_out}
        counts["held_out_too"] = sum(problem.id in known for problem in seeds)
        seeds = [problem for problem in seeds if problem.id not in known]
        if not seeds:
            raise UserError(
                f"{ctx.name}: no seed is left of {len(read)}: {counts['held_out_too']} are among the held-out problems, "
                f"{counts['without_answer']} are math without an answer",
                fix=f"give {ctx.name}.path other problems, or {ctx.name}.domain: general",
            )
    write_jsonl(ctx.folder / "seeds.jsonl", seeds)
    write_jsonl(ctx.folder / "held_out.jsonl", held_out)
    if bad:
        write_jsonl(ctx.folder / "bad_rows.jsonl", bad)
    return {
        "seeds": len(seeds),
        "held_out": len(held_out),
        "bad_rows": len(bad),
        **counts,
        "depths": _depths(seeds),
        "held_out_depths": _depths(held_out),
    }


def _from_source(
    settings: ProblemsStage, path: str | None, split: str, limit: int, domain: Domain | None = None
) -> tuple[list[Problem], list[BadRow]]:
    assert path is not None  # the schema sees to it
    if settings.source == "jsonl":
        return read_problems(Path(path), limit=limit, skip_broken=settings.skip_broken_lines, domain=domain)
    return load_problems(path, subset=settings.subset, split=split, limit=limit, domain=domain)


def _depths(problems: list[Problem]) -> dict[str, int]:
    counts = Counter(problem.depth for problem in problems if problem.depth is not None)
    return {str(depth): counts[depth] for depth in sorted(counts)}
