"""Small programs behind the embedded word problems: statements that give or derive quantities, with exact answers and steps.

A program is a list of statements over a few people, then a question. Each derived quantity is one reasoning step. The *shape* of a
program is the statements that its answer needs, without numbers, names, topic and wording; a fixed quarter of all shapes is held out, so
a held-out problem is never a trained one in other words, nor one with a statement that does not matter put in.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Operation = Literal["given", "more", "fewer", "times", "share", "gain", "lose", "multiply", "total", "difference", "split", "cost"]
# Relations make a quantity of one person from another's; changes alter a person's own; questions derive one last quantity.
RELATIONS: tuple[Operation, ...] = ("more", "fewer", "times", "share")
CHANGES: tuple[Operation, ...] = ("gain", "lose", "multiply")
QUESTIONS: tuple[Operation, ...] = ("total", "difference", "split", "cost")
SIGNS: dict[str, str] = {
    "more": "+", "fewer": "-", "times": "*", "share": "/", "gain": "+", "lose": "-", "multiply": "*",
    "total": "+", "difference": "-", "split": "/", "cost": "*",
}  # fmt: skip
LABELS = {"total": "all", "difference": "diff", "split": "each", "cost": "cost"}
NAMES = ("Ann", "Ben", "Cal", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim")
TOPICS = ("apples", "marbles", "coins", "books", "stamps", "shells", "cards", "pencils", "cookies", "balloons", "stickers", "rocks")
ONE_STEP = frozenset(
    {
        *("given0 more1<0 ?1", "given0 fewer1<0 ?1", "given0 times1<0 ?1", "given0 share1<0 ?1"),
        *("given0 gain0 ?0", "given0 lose0 ?0", "given0 multiply0 ?0", "given0 split0 ?", "given0 cost0 ?"),
        *("given0 given1 total0<1 ?", "given0 given1 difference0<1 ?", "given0 given1 difference1<0 ?"),
    }
)
HELD_OUT_ONE_STEP = frozenset({"given0 fewer1<0 ?1", "given0 lose0 ?0", "given0 split0 ?", "given0 given1 total0<1 ?"})
# No quantity, change and factor exceeds these: difficulty should lie in reading and binding. Up to 50, most mistakes of a small model are
# sums that it has not learnt by heart, which a reward model of its size cannot judge either.
LARGEST = 20
LARGEST_CHANGE = 6
LARGEST_FACTOR = 3


@dataclass(frozen=True)
class Statement:
    """`who` gets a quantity; `ref` is the other person in relations, total and difference; `n` the number in the text."""

    op: Operation
    who: int
    ref: int | None = None
    n: int = 0


@dataclass(frozen=True)
class Step:
    """One derivation: label a sign b = value. The label says whose quantity it is, or what the question asks for.

    Later steps can look a value up by its name, as in solutions that people write: without names a model of this size learns half as
    fast.
    """

    label: str
    a: int
    sign: str
    b: int
    value: int

    def __str__(self) -> str:
        return f"{self.label} {self.a}{self.sign}{self.b}={self.value}"


@dataclass(frozen=True)
class Program:
    """`target` is the person asked about; the last statement may be one of QUESTIONS, which then is what is asked."""

    topic: str
    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    target: int
    style: int = 0  # chooses the wording

    @property
    def asks(self) -> Operation | None:
        """The closing question's operation; None when a person's own quantity is asked."""
        return self.statements[-1].op if self.statements[-1].op in QUESTIONS else None

    def execute(self) -> list[tuple[Step | None, set[int]]]:
        """For each statement its step (None for a given) and the statements it reads. Raises ValueError where a value is impossible."""
        value: dict[int, int] = {}
        made_by: dict[int, int] = {}
        done: list[tuple[Step | None, set[int]]] = []
        for place, one in enumerate(self.statements):
            if one.op == "given":
                if one.who in value or one.n < 1:
                    raise ValueError("given twice")
                value[one.who], made_by[one.who] = one.n, place
                done.append((None, set()))
                continue
            source = one.ref if one.op in RELATIONS else one.who
            if source is None or source not in value or (one.op in RELATIONS and one.who in value):
                raise ValueError("unknown quantity")
            a, reads, b = value[source], {made_by[source]}, one.n
            if one.op in ("total", "difference"):
                if one.ref is None or one.ref not in value or one.ref == one.who:
                    raise ValueError("unknown quantity")
                b = value[one.ref]
                reads.add(made_by[one.ref])
            sign = SIGNS[one.op]
            if sign == "/" and a % b:
                raise ValueError("not whole")
            result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
            if not 1 <= result <= LARGEST:
                raise ValueError("out of range")
            done.append((Step(LABELS.get(one.op, self.names[one.who]), a, sign, b, result), reads))
            if one.op not in QUESTIONS:
                value[one.who], made_by[one.who] = result, place
        return done

    def needed(self) -> list[int]:
        """Places of the statements that the answer depends on, in order."""
        done = self.execute()
        last = len(self.statements) - 1
        if self.asks is None:
            last = max(place for place, one in enumerate(self.statements) if one.who == self.target)
        wanted, open_ = set(), [last]
        while open_:
            place = open_.pop()
            if place not in wanted:
                wanted.add(place)
                open_ += done[place][1]
        return sorted(wanted)

    def steps(self) -> list[Step]:
        """The derivations that lead to the answer. Their number is the depth."""
        done = self.execute()
        return [step for place in self.needed() if (step := done[place][0]) is not None]

    @property
    def answer(self) -> int:
        return self.steps()[-1].value

    @property
    def depth(self) -> int:
        return len(self.steps())

    def shape(self) -> str:
        """Statements that the answer needs, with people numbered by first appearance; no numbers, names, topic or wording."""
        order: dict[int, int] = {}
        parts = []
        for one in (self.statements[place] for place in self.needed()):
            people = [order.setdefault(person, len(order)) for person in (one.who, one.ref) if person is not None]
            people = sorted(people) if one.op == "total" else people  # a sum is the same either way
            parts.append(one.op + "<".join(map(str, people)))
        return " ".join(parts) + f" ?{order[self.target] if self.asks is None else ''}"

    def to_json(self) -> dict[str, Any]:
        rows = [[one.op, one.who, one.ref, one.n] for one in self.statements]
        return {"topic": self.topic, "names": list(self.names), "statements": rows, "target": self.target, "style": self.style}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Program:
        rows = tuple(Statement(*row) for row in data["statements"])
        return cls(data["topic"], tuple(data["names"]), rows, data["target"], data["style"])


def is_held_out(shape: str) -> bool:
    """A quarter of all shapes, for ever the same ones; those of one step, which are few, are chosen by hand."""
    if shape in ONE_STEP:
        return shape in HELD_OUT_ONE_STEP
    return hashlib.sha256(shape.encode()).digest()[0] % 4 == 0


def is_sound(program: Program) -> bool:
    """Every value possible, at least one step, no more than one statement that does not matter."""
    try:
        return program.depth >= 1 and len(program.statements) - len(program.needed()) <= 1
    except (ValueError, IndexError):
        return False


def random_program(rng: random.Random, depth: int, *, max_number: int, held_out: bool, topic: str | None = None) -> Program:
    """A sound program of `depth` steps whose shape is (not) held out."""
    while True:
        program = _draft(rng, depth, max_number, topic)
        if is_sound(program) and program.depth == depth and is_held_out(program.shape()) == held_out:
            return program


def _draft(rng: random.Random, depth: int, max_number: int, topic: str | None) -> Program:
    names = tuple(rng.sample(NAMES, min(len(NAMES), depth + 3)))
    rows = [Statement("given", 0, None, rng.randint(2, max_number))]
    people = 1
    while sum(row.op != "given" for row in rows) < depth:
        if rng.random() < 0.15 and people < 3:  # a second start: for totals, differences, or to lead astray
            rows.append(Statement("given", people, None, rng.randint(2, max_number)))
            people += 1
            continue
        last = sum(row.op != "given" for row in rows) == depth - 1
        row = _next(rng, people, rows, last)
        people = max(people, row.who + 1)
        rows.append(row)
    target = rows[-1].who
    return Program(topic or rng.choice(TOPICS), names[:people], tuple(rows), target, rng.getrandbits(30))


def _next(rng: random.Random, people: int, rows: list[Statement], last: bool) -> Statement:
    """One more statement, mostly about the person just spoken of."""
    recent = rows[-1].who
    person = recent if rng.random() < 0.7 else rng.randrange(people)
    if last and rng.random() < 0.4:
        op = rng.choice(QUESTIONS)
        if op in ("total", "difference"):
            other = rng.randrange(people)
            return Statement(op, person, other)
        return Statement(op, person, None, rng.randint(2, LARGEST_FACTOR))
    if rng.random() < 0.4:
        op = rng.choice(CHANGES)
        return Statement(op, person, None, rng.randint(2, LARGEST_FACTOR) if op == "multiply" else rng.randint(2, LARGEST_CHANGE))
    op = rng.choice(RELATIONS)
    return Statement(op, people, person, rng.randint(2, LARGEST_FACTOR) if op in ("times", "share") else rng.randint(2, LARGEST_CHANGE))


def renumber(rng: random.Random, program: Program, max_number: int) -> Program | None:
    """The same statements with other numbers up to `max_number`; None where 60 draws gave nothing possible."""
    for _ in range(60):
        rows = []
        for row in program.statements:
            if row.op in ("total", "difference"):
                rows.append(row)
            elif SIGNS.get(row.op) in ("*", "/"):
                rows.append(replace(row, n=rng.randint(2, LARGEST_FACTOR)))
            else:
                rows.append(replace(row, n=rng.randint(2, max_number if row.op == "given" else min(LARGEST_CHANGE, max_number))))
        changed = replace(program, statements=tuple(rows), style=rng.getrandbits(30))
        if is_sound(changed):
            return changed
    return None


def distinct(programs: Iterable[Program]) -> list[Program]:
    """Without repeats, first ones kept."""
    return list(dict.fromkeys(programs))
