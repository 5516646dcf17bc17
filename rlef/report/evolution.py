"""Sections: what each evolve stage made: by operation, by round, and what was eliminated, with an example of each rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rlef.records import Problem
from rlef.report.data import Curve, Run
from rlef.report.lineage import NEW, differences
from rlef.report.names import FLAWS, OPERATIONS, RULES
from rlef.report.parts import Section, bars, charts, folded, named, percent, table, text, title
from rlef.report.plots import Plot, plot

DIRECTIONS = {"up": "made harder", "down": "made easier", "breadth": "on another topic"}


def sections(run: Run) -> list[Section]:
    return [one for name in run.of_kind("evolve") if (one := _section(run, name)) is not None]


def _section(run: Run, name: str) -> Section | None:
    result = run.result(name)
    if not result:
        return None
    evolved, eliminated = run.evolved[name], run.eliminated[name]
    drawn = [one for one in _difficulty(run, name) if one]
    by_operation = {problem.lineage.operation: problem for problem in reversed(evolved) if problem.lineage and not _flaw(problem)}
    by_flaw = {flaw: problem for problem in reversed(evolved) if (flaw := _flaw(problem))}
    by_rule = {row.rule: row.problem for row in reversed(eliminated)}
    parts = [
        f"<p>{result['made']:,} made, {result['kept']:,} kept.</p>",
        charts(drawn),
        _rounds(result.get("rounds", {})),
        "<h3>Kept, by operation</h3>",
        bars(_most(result["operations"]), OPERATIONS),
        folded("An example of each operation", _examples(run, by_operation, OPERATIONS)) if by_operation else "",
        "<h3>What was eliminated, and why</h3>",
        bars(_most(result["eliminated"]), RULES),
        folded("An example of each rule", _examples(run, by_rule, RULES)) if by_rule else "",
    ]
    if by_flaw:
        note = "<p>The elimination rules cannot see these flaws; r_I has to learn to.</p>"
        parts.append(f"<h3>Flawed but kept</h3>{note}{folded('An example of each flaw', _examples(run, by_flaw, FLAWS))}")
    return Section(f"stage-{name}", title("What evolved", name, "evolve"), "".join(parts), drawn)


def _flaw(problem: Problem) -> str | None:
    return problem.truth.flaw if problem.truth else None


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _difficulty(run: Run, name: str) -> list[Plot | None]:
    """Over the rounds: reasoning steps where they are known, words always, and the policy's pass rate by feedback."""
    evolved = run.evolved[name]
    steps: dict[str, list[tuple[int, float]]] = defaultdict(list)
    words: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for problem in evolved:
        if problem.lineage is not None:
            way = problem.lineage.operation.split(".")[0]
            words[way].append((problem.lineage.round, len(problem.question.split())))
            if problem.depth is not None:
                steps[way].append((problem.lineage.round, problem.depth))
    measured = {int(number): one for number, one in run.result(name).get("rounds", {}).items() if one and number.isdecimal()}
    low, high = run.config["stages"][name].get("band") or (float("-inf"), float("inf"))
    rates = [(float(number), one["pass_rate"]) for number, one in measured.items() if one.get("pass_rate") is not None]
    return [
        plot("reasoning steps, mean", _means(steps), "round", of=name, dots=True),
        plot("words, mean", _means(words), "round", of=name, dots=True),
        plot("share of a round by reasoning steps", _shares(steps), "round", of=name, shares=True, dots=True),
        plot(
            "the policy's pass rate",
            {"": rates},
            "round",
            of=name,
            shares=True,
            dots=True,
            low=low,
            high=high,
            note="In the red a problem is too hard or too easy to learn from.",
        ),
    ]


def _means(values: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Curve]:
    """By direction and all together: the mean of each round."""
    listed = {DIRECTIONS.get(way, way): values[way] for way in DIRECTIONS if way in values}
    listed |= {way: rows for way, rows in values.items() if way not in DIRECTIONS}
    if len(listed) > 1:
        listed["all"] = [row for rows in values.values() for row in rows]
    found = {}
    for way, rows in listed.items():
        rounds: dict[int, list[float]] = defaultdict(list)
        for number, value in rows:
            rounds[number].append(value)
        found[way] = [(float(number), sum(rounds[number]) / len(rounds[number])) for number in sorted(rounds)]
    return found


def _shares(steps: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Curve]:
    """Of each number of reasoning steps: the share of each round's problems that have it."""
    counts = Counter(row for rows in steps.values() for row in rows)
    rounds = sorted({number for number, _ in counts})
    whole = {number: sum(count for row, count in counts.items() if row[0] == number) for number in rounds}
    return {
        f"{depth:g}": [(float(number), counts[number, depth] / whole[number]) for number in rounds]
        for depth in sorted({depth for _, depth in counts})[:8]
    }


def _rounds(rounds: Mapping[str, Mapping[str, Any]]) -> str:
    """How hard each round's children were for the policy; empty where nothing was measured."""
    rows = [
        [number, "–" if one.get("pass_rate") is None else f"{one['pass_rate']:.2f}", percent(one.get("in_band"))]
        for number, one in rounds.items()
        if one
    ]
    note = "<p>The share of the policy's answers to a new problem that solve it, as far as its votes and the PRM can tell.</p>"
    return "<h3>By feedback: how hard each round was</h3>" + note + table(["round", "pass rate", "within the band"], rows) if rows else ""


def _examples(run: Run, examples: Mapping[str, Problem], meanings: Mapping[str, str]) -> str:
    cards = []
    for name, problem in sorted(examples.items()):
        parent = run.problems.get(problem.lineage.parent) if problem.lineage else None
        cards.append(f"<div><h4>{named(name, meanings)}</h4>{rewrite(parent, problem)}</div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def rewrite(parent: Problem | None, child: Problem) -> str:
    """Before and after, new words marked."""
    if parent is None:
        return f"<div class=card>{text(child.question)}</div>"
    depths = f" <span class=dim>({parent.depth} → {child.depth} steps)</span>" if parent.depth and child.depth else ""
    return f"<div class=card><span class=dim>before:</span> {text(parent.question)}<br><span class=dim>after:</span> {marked(parent.question, child.question)}{depths}</div>"


def marked(parent: str, child: str) -> str:
    """The child's question; its new words are marked where it is a revision and not another problem."""
    return "".join(f"<mark>{text(words)}</mark>" if kind == NEW else text(words) for kind, words in differences(parent, child) if kind >= 0)
