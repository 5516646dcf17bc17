"""The teacher answers a part of the evolved problems; what it agrees on, or is usable as it is, is trained on, the rest stays for RL."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from rlef.answers import same_answer
from rlef.config import RespondStage
from rlef.evolution.teachers import Teacher, account, teaching
from rlef.records import Eliminated, Problem, Record, Solution, read_jsonl, write_jsonl
from rlef.stages.context import StageContext
from rlef.stages.shards import Shards

STAGE_VERSION = 2
CHUNK = 32
# A response that begins by saying what it will not do, with or without an excuse. "I cannot wait to see you" does not.
_EXCUSE = (
    r"(?:(?:i['’]?m |i am )?(?:very |so )?(?:sorry|afraid)|i apologi[sz]e|my apologies|unfortunately"
    r"|as an? (?:ai|artificial|language))\b.{0,60}?"
)
_REFUSAL = re.compile(
    rf"^\W*(?:{_EXCUSE})?\bi(?:['’]m| am)?\s+(?:can ?not|can['’]?t|won['’]?t|unable to|not able to)\s+(?:\w+\s+)?"
    r"(?:help|assist|answer|do|provide|write|create|complete|respond|comply|fulfil|access)",
    re.IGNORECASE,
)


class Answered(Record):
    """Row of a shard: what the teacher answered to one problem."""

    solutions: tuple[Solution, ...]


def run(ctx: StageContext) -> dict:
    """Writes solved.jsonl (kept solutions, one a problem), rejected.jsonl, and prompts.jsonl (problems that nobody answered)."""
    shards = Shards(ctx, ctx.config.teacher.batch_size)
    with teaching(ctx.config, ctx.journal) as teacher:
        return _respond(ctx, shards, teacher) | account(teacher)


def _respond(ctx: StageContext, shards: Shards, teacher: Teacher) -> dict:
    settings: RespondStage = ctx.settings
    evolved = read_jsonl(ctx.inputs["prompts"] / "evolved.jsonl", Problem)
    asked = set(random.Random(f"respond/{ctx.seed}").sample(range(len(evolved)), min(settings.count, len(evolved))))
    questions = [evolved[index] for index in sorted(asked)]

    def ask(group: Sequence[Problem]) -> list[Answered]:
        return [Answered(solutions=tuple(row)) for row in teacher.respond(group, settings.samples, seed=ctx.seed)]

    groups = [questions[start : start + CHUNK] for start in range(0, len(questions), CHUNK)]
    with ctx.tracker.progress(ctx.name, len(questions)) as advance:
        answered = shards.asked("respond", teacher, groups, ask, Answered, advance, answers=CHUNK * settings.samples)
    if not shards.main:
        return {}
    solved: list[Solution] = []
    rejected: list[Eliminated] = []
    for problem, answers in zip(questions, answered, strict=True):
        known = problem if settings.use_answers else problem.model_copy(update={"answer": None})
        kept, reason = choose_solution(known, list(answers.solutions), min_agreement=settings.min_agreement)
        if kept is not None:
            solved.append(kept)
        else:
            rejected.append(Eliminated(problem=problem, rule=reason))
    write_jsonl(ctx.folder / "solved.jsonl", solved)
    write_jsonl(ctx.folder / "rejected.jsonl", rejected)
    left = [problem for index, problem in enumerate(evolved) if index not in asked]
    write_jsonl(ctx.folder / "prompts.jsonl", left)
    once = sum(problem.domain != "math" for problem in questions)
    return {
        "asked": len(questions),
        **({"asked_once": once} if once else {}),
        "solved": len(solved),
        "rejected": dict(Counter(row.rule for row in rejected)),
        "prompts": len(left),
    }


def choose_solution(problem: Problem, solutions: list[Solution], *, min_agreement: float) -> tuple[Solution | None, str]:
    """The first solution with the known answer, else with the answer that enough samples share; or None and the reason.

    A lone sample cannot agree with anything: with one sample and no known answer nothing is kept. What is no math has no final answer: the
    first usable response is kept.
    """
    if problem.domain != "math":
        reasons = [unusable(problem.question, solution) for solution in solutions]
        kept = next((solution for solution, reason in zip(solutions, reasons, strict=True) if reason is None), None)
        return kept, "" if kept else next((reason for reason in reasons if reason), "no_answer")
    stepped = [solution for solution in solutions if solution.answer is not None and solution.steps]
    if not stepped:
        return None, "no_answer"
    if problem.answer is not None:
        right = next((solution for solution in stepped if same_answer(str(solution.answer), problem.answer, problem.question)), None)
        return right, "" if right else "wrong_answer"
    groups: list[list[Solution]] = []
    for solution in stepped:
        group = next((group for group in groups if same_answer(str(group[0].answer), str(solution.answer), problem.question)), None)
        if group is None:
            groups.append([solution])
        else:
            group.append(solution)
    best = max(groups, key=len)
    share = len(best) / len(solutions)
    if share < min_agreement or len(best) < 2:
        return None, "not_self_consistent"
    return best[0].model_copy(update={"agreement": share}), ""


def unusable(question: str, response: Solution) -> str | None:
    """Why nothing can be learnt from a response: no_answer, cut_off, refusal, repeats_question; None where it can be used as it is."""
    if not response.text.strip():
        return "no_answer"
    if response.finished is False:
        return "cut_off"
    if _REFUSAL.search(response.text):
        return "refusal"
    said, asked = (re.findall(r"\w+", text.lower()) for text in (response.text, question))
    return "repeats_question" if said == asked else None
