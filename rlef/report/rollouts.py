"""Section: sampled answers, to look through: steps in the colour of their score, the parts of the reward, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

from rlef.answers import as_number, canonical, extract_answer, same_answer
from rlef.records import PairRow, Problem, Rollout
from rlef.report.data import BY_ITERATION, Run
from rlef.report.names import FLAWS, OPERATIONS
from rlef.report.parts import LONGEST, Section, cut, shown
from rlef.views.compare import read_outcomes

T = TypeVar("T")
ROLLOUTS, PAIRS, EVALUATED = 240, 60, 100  # answers of a trained policy, pairs, and answers of an evaluated policy that go into the page
STEP = 1000  # characters of a step that are shown
CHARACTERS = 300_000  # of the answers of one source, after which none more is taken


def section(run: Run) -> Section | None:
    """None where no policy has answered yet."""
    sources, problems, items = _collected(run)
    if not items:
        return None
    told = (
        f"<p>{'; '.join(sources.values())}. The number before each step is its score: how sure the process reward model is that the step is right. "
        "r_A is the lowest of them, or 0 where the answer is cut off or cannot be read. "
        "<span class=hint>Arrow keys walk the list.</span></p>"
    )
    data = {"sources": list(sources), "problems": problems, "items": items, "flaws": FLAWS, "operations": OPERATIONS}
    return Section("rollouts", "Sampled answers", told + "<div class=viewer id=rollouts-viewer></div>", viewer=data)


def _collected(run: Run) -> tuple[dict[str, str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Where the answers come from with how many of how many are shown; their problems; and the answers, each with places of both."""
    sources: dict[str, str] = {}
    places: dict[str, int] = {}
    problems: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []

    def place(problem_id: str, question: str, problem: Problem | None) -> int:
        if problem_id not in places:
            places[problem_id] = len(problems)
            problems.append(_problem(question, problem))
        return places[problem_id]

    model = run.config.get("model") or {}
    delimiter, marker = str(model.get("step_delimiter") or "\n"), str(model.get("answer_marker") or "####")
    for name in run.of_kind(*BY_ITERATION):
        rows = run.rows(f"{name}/rollouts.jsonl", Rollout)
        some = spread(rows, ROLLOUTS)
        some = affordable(some, [len(row.text) for row in some])
        if rows:
            last = max(row.iteration for row in rows)
            sources[f"{name}, iteration {last}"] = f"{name}: {len(some):,} of {len(rows):,} answers that were kept, of iteration {last}"
        for row in some:
            known = run.problems.get(row.problem_id) or run.held_out.get(row.problem_id)
            at = place(row.problem_id, row.question, known)
            items.append({"s": len(sources) - 1, "p": at, "n": row.sample} | _rollout(row, known, delimiter, marker))
    for name in run.of_kind("dpo"):
        pairs = run.rows(f"{name}/pairs.jsonl", PairRow)
        few = affordable(pairs[:PAIRS], [len(row.chosen) + len(row.rejected) for row in pairs])
        if pairs:
            sources[f"{name}, pairs"] = f"{name}: {len(few):,} of {len(pairs):,} pairs"
        for row in few:
            problem = run.problems.get(row.problem_id)
            at = place(row.problem_id, row.question, problem)
            for side, words, reward in (("better", row.chosen, row.chosen_reward), ("worse", row.rejected, row.rejected_reward)):
                items.append({"s": len(sources) - 1, "p": at, "side": side} | _one_of_pair(row, words, reward, problem, delimiter, marker))
    for name in run.of_kind("evaluate"):
        for policy, rows in read_outcomes(run.folder / name).items():
            known = [row for row in rows if row.problem_id in run.held_out][:EVALUATED]
            known = affordable(known, [len(row.text) for row in known])
            if known:
                sources[f"{policy}, held out"] = f"{policy} on held-out problems: {len(known):,} of {len(rows):,}"
            for row in known:
                problem = run.held_out[row.problem_id]
                steps = [[shown(step, STEP)] for step in _steps(row.text, delimiter)]
                items.append(
                    {"s": len(sources) - 1, "p": place(row.problem_id, problem.question, problem), "t": steps, "right": row.right}
                    | ({} if row.finished else {"cut": True})
                )
    return sources, problems, items


def affordable(rows: Sequence[T], lengths: Sequence[int]) -> list[T]:
    """The first rows whose texts, cut as they will be, hold CHARACTERS together."""
    whole = accumulate(min(LONGEST, length) for length in lengths)
    return [row for row, total in zip(rows, whole, strict=False) if total <= CHARACTERS]


def spread(rows: Sequence[Rollout], most: int) -> list[Rollout]:
    """One sample a problem before a second one of any; then those of one problem stand together again."""
    chosen = sorted(rows, key=lambda row: row.sample)[:most]
    order = {problem: place for place, problem in enumerate(dict.fromkeys(row.problem_id for row in chosen))}
    return sorted(chosen, key=lambda row: (order[row.problem_id], row.sample))


def _problem(question: str, problem: Problem | None) -> dict[str, Any]:
    lineage = problem.lineage if problem else None
    row = {
        "q": shown(question),
        "o": lineage.operation if lineage else None,
        "d": problem.depth if problem else None,
        "a": shown(problem.answer, 200) if problem and problem.answer else None,
        "f": problem.truth.flaw if problem and problem.truth else None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _rollout(row: Rollout, problem: Problem | None, delimiter: str, marker: str) -> dict[str, Any]:
    scores = [round(score, 3) for score in row.step_scores]
    steps = [[shown(step, STEP), *scores[place : place + 1]] for place, step in enumerate(_steps(row.text, delimiter))]
    found: dict[str, Any] = {"t": steps, "length": row.length}
    if row.masked:
        found["masked"] = True
    else:
        found |= {"i": round(row.instruction, 3), "r": round(row.answer, 3), "total": round(row.total, 3)}
    if not row.finished:
        found["cut"] = True
    right = is_right(extract_answer(row.text, marker), problem)
    return found if right is None else found | {"right": right}


def _one_of_pair(row: PairRow, words: str, reward: float, problem: Problem | None, delimiter: str, marker: str) -> dict[str, Any]:
    """A whole answer, or a step behind those that both answers share."""
    steps = [*row.prefix, *_steps(words, delimiter)]
    found = {"t": [[shown(step, STEP)] for step in steps], "i": round(row.instruction, 3), "r": round(reward, 3)}
    right = is_right(extract_answer(words, marker), problem) if not row.prefix else None
    return found | {"total": round(row.instruction * reward, 3)} | ({} if right is None else {"right": right})


def _steps(text: str, delimiter: str) -> list[str]:
    return [step.strip() for step in cut(text).split(delimiter) if step.strip()]


def is_right(answer: str | None, problem: Problem | None) -> bool | None:
    """None where no answer is known, or where only the slow grader could tell two formulas apart."""
    if problem is None or problem.answer is None:
        return None
    if answer is None:
        return False
    gold = problem.answer
    if as_number(answer) is not None and as_number(gold) is not None:
        return same_answer(answer, gold, problem.question)
    return True if canonical(answer) == canonical(gold) else None
