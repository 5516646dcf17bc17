"""Section: the trees that grew from the seeds, to walk through, with the words that each operation added and took away."""

from __future__ import annotations

import difflib
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlef.records import Problem
from rlef.report.data import Run
from rlef.report.names import FLAWS, OPERATIONS, RULES
from rlef.report.parts import LONGEST, Section, shown

MOST, TREE = 1000, 150  # problems that go into the page, and of them from one seed
CHARACTERS = 1_000_000  # of all their texts, after which no tree more is taken
PAIRS = 50_000  # equal words of two texts, pair by pair, above which new words are not looked for: that takes pairs times blocks
SAME_TEXT = 0.4  # share of common words from which a rewrite is shown with its new words marked
GONE, SAME, NEW = -1, 0, 1
Part = tuple[int, str]


@dataclass(frozen=True)
class Node:
    """A problem in its tree; `rule` where it was eliminated."""

    problem: Problem
    parent: int  # place of its parent's node, -1 for a root
    rule: str | None = None
    detail: str = ""


def section(run: Run) -> Section | None:
    """None where nothing evolved from the seeds."""
    nodes, trees = forest(run)
    if len(nodes) <= trees:
        return None
    made = sum(len(rows) for rows in [*run.evolved.values(), *run.eliminated.values()])
    roots = len(_roots(run, _children(run)))
    told = (
        f"<p>The trees of {trees:,} of {roots:,} seeds: {len(nodes) - trees:,} of the {made:,} problems that were made, eliminated ones among them. "
        "Choose a problem to see the line that it comes from; <mark>new words</mark> are marked, <del>lost ones</del> struck out. "
        "<span class=hint>Arrow keys walk the tree, → opens and ← closes.</span></p>"
    )
    return Section("lineage", "From seed to problem", told + "<div class=viewer id=lineage-viewer></div>", viewer=as_json(nodes))


def forest(run: Run) -> tuple[list[Node], int]:
    """Whole trees of seeds taken evenly from all, parents before children, and how many trees; of a very large tree its upper part."""
    children = _children(run)
    roots = _roots(run, children)
    if not roots:
        return [], 0
    made = sum(map(len, children.values()))
    wanted = min(len(roots), max(1, MOST * len(roots) // max(1, made)))
    chosen = [roots[round(place * (len(roots) - 1) / max(1, wanted - 1))] for place in range(wanted)]
    nodes: list[Node] = []
    trees = characters = 0
    for root in chosen:
        tree = list(_tree(root, children, len(nodes)))
        characters += sum(min(LONGEST, len(node.problem.question)) for node in tree)
        if nodes and (len(nodes) + len(tree) > MOST + MOST // 10 or characters > CHARACTERS):
            break
        nodes += tree
        trees += 1
    return nodes, trees


def _children(run: Run) -> dict[str, list[tuple[Problem, str | None, str]]]:
    """By the parent's id: (problem, rule, detail)."""
    found: dict[str, list[tuple[Problem, str | None, str]]] = {}
    rows = [(problem, None, "") for problems in run.evolved.values() for problem in problems]
    rows += [(row.problem, row.rule, row.detail) for rows in run.eliminated.values() for row in rows]
    for row in rows:
        if row[0].lineage is not None and row[0].lineage.parent in run.problems:
            found.setdefault(row[0].lineage.parent, []).append(row)
    return found


def _roots(run: Run, children: dict[str, list[Any]]) -> list[Problem]:
    """Seeds that something was made from, and evolved problems of an earlier run whose parent is not here."""
    evolved = [problem for problems in run.evolved.values() for problem in problems]
    orphans = [problem for problem in evolved if problem.lineage is not None and problem.lineage.parent not in run.problems]
    return [problem for problem in [*run.seeds, *orphans] if problem.id in children]


def _tree(root: Problem, children: dict[str, list[tuple[Problem, str | None, str]]], place: int) -> Iterator[Node]:
    """Round after round. What repeats its parent has the parent's id, and no children of its own."""
    queue = deque([Node(root, -1)])
    seen = {root.id}
    for number in range(TREE):
        if not queue:
            return
        node = queue.popleft()
        yield node
        again = (
            node.rule is not None
            and node.parent >= 0
            and node.problem.lineage is not None
            and node.problem.id == node.problem.lineage.parent
        )
        for problem, rule, detail in () if again else children.get(node.problem.id, ()):
            if rule is not None or problem.id not in seen:
                queue.append(Node(problem, place + number, rule, detail))
            if rule is None:
                seen.add(problem.id)


def as_json(nodes: Sequence[Node]) -> dict[str, Any]:
    """For the page's script: short names, since there are many; what is not known is left out."""
    rows = []
    for node in nodes:
        problem, lineage = node.problem, node.problem.lineage
        parent = nodes[node.parent].problem if node.parent >= 0 else None
        row = {
            "p": node.parent,
            "t": differences(parent.question, problem.question) if parent else [(SAME, shown(problem.question))],
            "o": lineage.operation if lineage and parent else None,
            "r": lineage.round if lineage and parent else None,
            "by": lineage.teacher if lineage and parent and lineage.teacher != "symbolic" else None,
            "d": problem.depth,
            "a": shown(problem.answer, 200) if problem.answer else None,
            "w": node.rule,
            "wd": shown(node.detail, 200) or None,
            "f": problem.truth.flaw if problem.truth else None,
            "x": round(problem.pass_rate, 2) if problem.pass_rate is not None else None,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return {"nodes": rows, "operations": OPERATIONS, "rules": RULES, "flaws": FLAWS}


def differences(parent: str, child: str) -> list[Part]:
    """The child's text in parts that are the parent's (0) or new (1), and between them what the parent had and is gone (-1).

    Without its gone parts it is the child's text to the letter. One part that is the parent's where it is another problem, not a revision.
    """
    parent, child = shown(parent), shown(child)
    old, new = re.findall(r"\S+", parent), re.findall(r"\S+\s*|^\s+", child)
    words = [word.strip() for word in new]
    before = Counter(old)
    whole = [(SAME, child)]
    if len(child) > LONGEST or sum(before[word] for word in words) > PAIRS:
        return whole
    matcher = difflib.SequenceMatcher(None, old, words, autojunk=False)
    if matcher.ratio() < SAME_TEXT:
        return whole
    parts: list[Part] = []
    for tag, start, end, first, last in matcher.get_opcodes():
        if end > start and tag != "equal":
            parts.append((GONE, " ".join(old[start:end])))
        if last > first:
            text = "".join(new[first:last])
            inner = text.rstrip() if tag != "equal" else text
            parts.append((SAME if tag == "equal" else NEW, inner))
            if len(inner) < len(text):
                parts.append((SAME, text[len(inner) :]))
    return parts or whole
