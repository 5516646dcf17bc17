"""Programs as text: a few wordings of every statement and question, some of them held out, and the flaws that a teacher makes."""

from __future__ import annotations

import random
from typing import Literal

from rlef.symbolic.programs import QUESTIONS, Program

Phrasing = Literal["train", "held_out"]
FLAWS = ("missing_quantity", "contradiction", "no_question", "ambiguous_reference")

# {w} who, {r} the other person, {n} the number, {t} the topic. The last wording of each list is held out: known words in a new order.
WORDINGS: dict[str, tuple[str, ...]] = {
    "given": ("{w} has {n} {t}.", "{w} starts with {n} {t}.", "{w} has {n} {t} in all."),
    "more": ("{w} has {n} more {t} than {r}.", "{w} has {n} {t} more than {r} has.", "{w} has {n} more {t} than {r} has."),
    "fewer": ("{w} has {n} fewer {t} than {r}.", "{w} has {n} {t} less than {r} has.", "{w} has {n} fewer {t} than {r} has."),
    "times": ("{w} has {n} times as many {t} as {r}.", "{w} has {n} times the {t} of {r}.", "{w} has {n} times as many {t} as {r} has."),
    "share": ("{w} has 1/{n} as many {t} as {r}.", "{w} has 1/{n} of what {r} has.", "{w} has 1/{n} of the {t} of {r}."),
    "gain": ("{w} gets {n} more.", "Then {w} buys {n} {t}.", "{w} buys {n} more {t}."),
    "lose": ("{w} loses {n}.", "Then {w} gives away {n} {t}.", "Then {w} loses {n} {t}."),
    "multiply": ("Then the {t} of {w} grow to {n} times.", "{w} now has {n} times what {w} had.", "Then {w} has {n} times what {w} had."),
}  # fmt: skip
QUESTION_WORDINGS: dict[str | None, tuple[str, ...]] = {
    None: ("How many {t} does {w} have?", "How many {t} has {w} now?", "How many {t} does {w} now have?"),
    "total": ("How many {t} do {w} and {r} have in all?", "How many {t} have {w} and {r} together?", "How many {t} do {w} and {r} have together?"),
    "difference": ("How many more {t} has {w} than {r}?", "By how many {t} does {w} beat {r}?", "How many more {t} does {w} have than {r}?"),
    "split": ("{w} shares with {n} in equal parts. How many is each part?", "{w} makes {n} equal parts. How many {t} in each?", "{w} makes {n} equal parts. How many {t} is each part?"),
    "cost": ("Each costs {n}. What do the {t} of {w} cost?", "At {n} each, what is the cost for {w}?", "Each costs {n}. What is the cost for {w}?"),
}  # fmt: skip


def wording(choices: tuple[str, ...], phrasing: Phrasing, rng: random.Random) -> str:
    """One of the training wordings; for "held_out" the held-out one in half of the sentences, so that each text mixes known and new."""
    return choices[-1] if phrasing == "held_out" and rng.random() < 0.5 else rng.choice(choices[:-1])


def render(program: Program, *, phrasing: Phrasing = "train", flaw: str | None = None) -> str:
    """The problem's text. The wording follows `program.style`; a `flaw` makes the text unanswerable in its own way."""
    rng = random.Random(f"style/{program.style}")
    names, topic = program.names, program.topic
    sentences = []
    statements = program.statements if program.asks is None else program.statements[:-1]
    needed = [place for place in program.needed() if place < len(statements)]
    hit = rng.choice(needed)
    if flaw == "ambiguous_reference":
        related = [place for place in needed if _is_open(program, place)]
        hit = related[-1] if related else -1
    for place, row in enumerate(statements):
        text = wording(WORDINGS[row.op], phrasing, rng)
        number = "some" if flaw == "missing_quantity" and place == hit else str(row.n)
        other = "the other one" if flaw == "ambiguous_reference" and place == hit else names[row.ref] if row.ref is not None else ""
        if number == "some" and row.op in ("share", "times", "multiply", "more", "fewer"):
            number = "some number of" if row.op in ("times", "multiply") else "some"
            text = text.replace("1/{n}", "some part")
        sentences.append(text.format(w=names[row.who], r=other, n=number, t=topic))
    question = _question(program, phrasing, rng, ambiguous=flaw == "ambiguous_reference" and hit == -1)
    if flaw == "contradiction":
        sentences.append(_contradiction(program, phrasing, rng))
    if flaw == "no_question":
        # The price or the parts belong to the question and go with it.
        return " ".join(sentences)
    return " ".join([*sentences, question])


def _question(program: Program, phrasing: Phrasing, rng: random.Random, *, ambiguous: bool) -> str:
    last = program.statements[-1]
    asks = program.asks
    who = program.names[program.target if asks is None else last.who]
    if ambiguous:
        # Where all have the same, any of them would do: then somebody is meant of whom nothing is said.
        who = "one of them" if len(set(_quantities(program, len(program.statements)).values())) > 1 else "someone else"
        asks = None if asks in ("total", "difference") else asks  # with two people the other name would tell who is meant
    other = program.names[last.ref] if asks is not None and last.ref is not None else ""
    return wording(QUESTION_WORDINGS[asks], phrasing, rng).format(w=who, r=other, n=last.n, t=program.topic)


def _is_open(program: Program, place: int) -> bool:
    """Whether "the other one" in the relation at `place` could mean people of different quantities: two people or more stand before it."""
    row = program.statements[place]
    before = _quantities(program, place)
    before.pop(row.who, None)
    return row.ref is not None and len(set(before.values())) > 1


def _quantities(program: Program, end: int) -> dict[int, int]:
    """What each person has before the statement at `end`."""
    done = zip(program.statements[:end], program.execute(), strict=False)
    return {row.who: step.value if step else row.n for row, (step, _) in done if row.op not in QUESTIONS}


def _contradiction(program: Program, phrasing: Phrasing, rng: random.Random) -> str:
    """A given quantity that the answer needs, stated again with a number that the person never has."""
    row = rng.choice([program.statements[place] for place in program.needed() if program.statements[place].op == "given"])
    had = {
        step.value if step else one.n for one, (step, _) in zip(program.statements, program.execute(), strict=True) if one.who == row.who
    }
    number = rng.choice([n for n in range(max(2, row.n - 9), row.n + 10) if n not in had])
    return wording(WORDINGS["given"], phrasing, rng).format(w=program.names[row.who], r="", n=number, t=program.topic)
