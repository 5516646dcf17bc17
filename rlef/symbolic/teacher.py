"""The symbolic teacher: evolves programs, answers, ranks and judges exactly. It stands in for an LLM where there is none.

It implements the same interfaces as the chat teacher, and like one it makes mistakes: a share of its evolutions comes out flawed
(an unanswerable text) or useless (a copy, a refusal, leaked prompt words), and some of its answers are wrong, by chance or because it
misreads a relation. Unlike one, it knows. That knowledge lies in `Problem.truth`; elimination and RL never see it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from rlef.records import Lineage, Problem, Solution, Truth, problem_id
from rlef.symbolic.programs import (
    CHANGES,
    LARGEST,
    LARGEST_CHANGE,
    LARGEST_FACTOR,
    QUESTIONS,
    TOPICS,
    Operation,
    Program,
    Statement,
    Step,
    is_held_out,
    is_sound,
    random_program,
    renumber,
)
from rlef.symbolic.render import FLAWS, Phrasing, render
from rlef.teacher import Quality

OPERATIONS = (
    "up.add_constraint",
    "up.concretise",
    "up.add_step",
    "down.drop_step",
    "down.smaller_numbers",
    "down.easier_topic",
    "breadth.new_topic",
)
USELESS_RATE = 0.08  # share of evolutions that elimination should catch
ERROR_RATE = 0.05  # share of sound problems' answers that are wrong by chance: another in every sample
# Relations that a misreading teacher takes for another, the same in every sample, so agreement among samples does not tell. Both are
# mistakes that people make: reversal ("fewer" as "more", Lewis and Mayer 1987) and adding where a multiple is meant.
MISREADINGS: dict[Operation, Operation] = {"fewer": "more", "times": "more"}
# Each flaw hits another aspect; totals are all different, so ranks have no ties between kinds.
QUALITIES: dict[str | None, tuple[float, float, float]] = {
    None: (1.0, 1.0, 1.0),
    "ambiguous_reference": (0.9, 0.2, 1.0),
    "contradiction": (0.6, 0.4, 0.8),
    "missing_quantity": (0.8, 0.6, 0.1),
    "no_question": (0.1, 0.6, 0.6),
}
_STEP = re.compile(r"([A-Za-z]{1,20}) (\d{1,9})([-+*/])(\d{1,9})=(\d{1,9})")
_ANSWER = re.compile(r"#### *(\d{1,9})")


def make_problems(count: int, *, depths: tuple[int, int], seed: int, split: Phrasing, max_number: int = 12) -> list[Problem]:
    """`count` sound problems with distinct texts, depths in turn. split "held_out": shapes that training never has."""
    rng = random.Random(f"problems/{split}/{seed}")
    problems: dict[str, Problem] = {}
    span = range(depths[0], depths[1] + 1)
    while len(problems) < count:
        program = random_program(rng, span[len(problems) % len(span)], max_number=max_number, held_out=split == "held_out")
        problem = as_problem(program, solved=True)
        problems.setdefault(problem.question, problem)
    return list(problems.values())


def as_problem(
    program: Program,
    *,
    phrasing: Phrasing = "train",
    flaw: str | None = None,
    solved: bool = False,
    lineage: Lineage | None = None,
) -> Problem:
    """A program as a row. A flawed one has no answer; `solved` adds the solution."""
    question = render(program, phrasing=phrasing, flaw=flaw)
    sound = flaw is None
    return Problem(
        id=problem_id(question),
        question=question,
        answer=str(program.answer) if sound else None,
        solution=tuple(str(step) for step in program.steps()) if solved and sound else None,
        source="symbolic",
        depth=program.depth,
        lineage=lineage,
        truth=Truth(program=program.to_json(), shape=program.shape(), flaw=flaw),
    )


def is_flawed(problem: Problem) -> bool:
    """Unanswerable as it stands."""
    return problem.truth is not None and problem.truth.flaw is not None


class SymbolicTeacher:
    """Evolver, Responder, InstructionJudge and StepJudge of symbolic problems."""

    name = "symbolic"
    operations = {"math": OPERATIONS}

    def __init__(self, *, flaw_rate: float = 0.25, misread_rate: float = 0.0, max_depth: int = 5, max_number: int = 12) -> None:
        self.flaw_rate, self.misread_rate = flaw_rate, misread_rate
        self.max_depth, self.max_number = max_depth, max_number

    # ------------------------------------------------------------------------------------------ evolve

    def evolve(self, parents: Sequence[Problem], operations: Sequence[str], *, round: int, seed: int) -> list[Problem | None]:
        """One child a parent. Sound children carry their answer (RL never reads it) but no solution."""
        return [
            self._evolve(parent, operation, round, random.Random(f"evolve/{seed}/{round}/{place}/{parent.id}"))
            for place, (parent, operation) in enumerate(zip(parents, operations, strict=True))
        ]

    def _evolve(self, parent: Problem, operation: str, round: int, rng: random.Random) -> Problem | None:
        root = parent.lineage.root if parent.lineage else parent.id
        lineage = Lineage(parent=parent.id, root=root, operation=operation, round=round, teacher=self.name)
        if rng.random() < USELESS_RATE:
            return self._useless(parent, lineage, rng)
        child = self._change(_program(parent), operation, rng)
        if child is None:
            return None
        flaw = rng.choice(FLAWS) if rng.random() < self.flaw_rate else None
        return as_problem(child, flaw=flaw, lineage=lineage)

    def _useless(self, parent: Problem, lineage: Lineage, rng: random.Random) -> Problem:
        text = rng.choice(
            (
                parent.question,
                parent.question.replace(".", " ."),
                "Sorry, but I cannot rewrite this prompt.",
                f"#Rewritten Prompt#: {parent.question}",
                "and of the, to it?",
            )
        )
        return Problem(id=problem_id(text), question=text, source="symbolic", lineage=lineage, truth=parent.truth)

    def _change(self, program: Program, operation: str, rng: random.Random) -> Program | None:
        for _ in range(60):
            changed = self._propose(program, operation, rng)
            if changed is not None and is_sound(changed) and 1 <= changed.depth <= self.max_depth and not is_held_out(changed.shape()):
                return changed
        return None

    def _propose(self, program: Program, operation: str, rng: random.Random) -> Program | None:
        depth = program.depth
        style = rng.getrandbits(30)
        topic = rng.choice([name for name in TOPICS if name != program.topic])
        if operation.startswith("up.") and operation != "up.concretise" and depth >= self.max_depth:
            operation = "up.concretise"
        if operation == "up.concretise":
            return renumber(rng, program, 2 * self.max_number)
        if operation == "up.add_step":
            return _extend(program, rng, style)
        if operation == "up.add_constraint":
            return _constrain(program, rng, style)
        if operation == "down.drop_step":
            return _shorten(program, style) or renumber(rng, program, 12)
        if operation == "down.smaller_numbers":
            return renumber(rng, program, 12)
        easier = max(1, depth - 1) if operation == "down.easier_topic" else depth
        return random_program(rng, easier, max_number=self.max_number, held_out=False, topic=topic)

    # ----------------------------------------------------------------------------------------- respond

    def respond(self, problems: Sequence[Problem], samples: int, *, seed: int) -> list[list[Solution]]:
        """Stepped answers; on a flawed problem they are guesses that seldom agree."""
        return [
            [self._answer(problem, sample, random.Random(f"respond/{seed}/{problem.id}/{sample}")) for sample in range(samples)]
            for problem in problems
        ]

    def _answer(self, problem: Problem, sample: int, rng: random.Random) -> Solution:
        program = _program(problem)
        if random.Random(f"misread/{problem.id}").random() < self.misread_rate:  # by the problem, not by the sample
            program = _misread(program)
        lines, answer = tuple(str(step) for step in program.steps()), str(program.answer)
        if is_flawed(problem) or rng.random() < ERROR_RATE:
            answer = str(rng.randint(1, LARGEST))
            lines = (*lines[:-1], f"{lines[-1].partition('=')[0]}={answer}")
        text = "\n".join([*lines, f"#### {answer}"])
        return Solution(
            problem_id=problem.id, question=problem.question, steps=lines, answer=answer, text=text, writer=self.name, sample=sample
        )

    # ------------------------------------------------------------------------------------------- judge

    def versions(self, problem: Problem, count: int, *, seed: int, phrasing: Phrasing = "train") -> list[Problem]:
        """Two sound versions and flawed ones of each kind in turn, of programs near the given one."""
        rng = random.Random(f"versions/{seed}/{problem.id}")
        kinds: list[str | None] = [None, None, *rng.sample(FLAWS, len(FLAWS))]
        kinds += rng.choices([None, *FLAWS], k=max(0, count - len(kinds)))
        program = _program(problem)
        versions: dict[str, Problem] = {}
        for kind in kinds[:count] if count >= 4 else rng.sample(kinds, count):
            changed = self._change(program, rng.choice(OPERATIONS), rng) or replace(program, style=rng.getrandbits(30))
            version = as_problem(changed, phrasing=phrasing, flaw=kind)
            versions[version.question] = version
        return list(versions.values())

    def judge_instructions(self, problems: Sequence[Problem], *, seed: int) -> list[Quality | None]:
        """Exact scores by kind of flaw."""
        return [_quality(problem) for problem in problems]

    def judge_steps(self, problems: Sequence[Problem], solutions: Sequence[Sequence[str]], *, seed: int) -> list[list[float | None]]:
        """1 for a new derivation that belongs to the way to the answer, from given or rightly derived quantities, with the right value
        and name.

        The answer line is right iff it states the answer. Steps on a flawed problem are not judged: there is no truth to judge them by,
        and what such a prompt is worth is the instruction reward model's question.
        """
        return [
            [None] * len(steps) if is_flawed(problem) else [float(label) for label in judge(problem, steps)]
            for problem, steps in zip(problems, solutions, strict=True)
        ]


def judge(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Whether each line is right; see `SymbolicTeacher.judge_steps`."""
    if is_flawed(problem) or problem.truth is None:
        return [False] * len(steps)
    program = _program(problem)
    done = program.execute()
    # The derivations that the answer still needs: one said twice leads nowhere the second time.
    left = {place: step for place in program.needed() if (step := done[place][0]) is not None}
    labels = []
    for text in steps:
        if answer := _ANSWER.fullmatch(text.strip()):
            labels.append(int(answer[1]) == program.answer)
            continue
        place = next((place for place, step in left.items() if not done[place][1] & left.keys() and _derives(text, step)), None)
        labels.append(place is not None)
        if place is not None:
            del left[place]
    return labels


def _derives(text: str, step: Step) -> bool:
    match = _STEP.fullmatch(text.strip())
    if match is None or (match[1], match[3]) != (step.label, step.sign):
        return False
    given = int(match[2]), int(match[4])
    return int(match[5]) == step.value and given in ({(step.a, step.b), (step.b, step.a)} if step.sign in "+*" else {(step.a, step.b)})


def _program(problem: Problem) -> Program:
    if problem.truth is None:
        raise ValueError(f"problem {problem.id} has no program: the symbolic teacher knows symbolic problems alone")
    return Program.from_json(problem.truth.program)


def _misread(program: Program) -> Program:
    """All relations of MISREADINGS that the answer needs misread; where that gives no whole quantities in range, one of them, or none."""
    places = [place for place in program.needed() if program.statements[place].op in MISREADINGS]
    for wrong in (places, *([place] for place in places)):
        rows = (replace(row, op=MISREADINGS[row.op]) if place in wrong else row for place, row in enumerate(program.statements))
        misread = replace(program, statements=tuple(rows))
        if is_sound(misread):
            return misread
    return program


def _quality(problem: Problem) -> Quality:
    kind = problem.truth.flaw if problem.truth else None
    return Quality(*QUALITIES[kind], kind=kind)


def _extend(program: Program, rng: random.Random, style: int) -> Program:
    """One more step after the answer."""
    rows = list(program.statements)
    if program.asks is not None:  # the closing question gives way to another ending
        rows.pop()
        people = len(program.names)
        person = program.target
        rows.append(Statement("gain", person, None, rng.randint(2, LARGEST_CHANGE)))
        rows.append(Statement(rng.choice(QUESTIONS), person, rng.randrange(people), rng.randint(2, LARGEST_FACTOR)))
        if rows[-1].op in ("split", "cost"):
            rows[-1] = replace(rows[-1], ref=None)
        return replace(program, statements=tuple(rows), style=style)
    op: Operation = rng.choice([*CHANGES, "split", "cost"])
    small = op in ("multiply", "split", "cost")
    rows.append(Statement(op, program.target, None, rng.randint(2, LARGEST_FACTOR) if small else rng.randint(2, LARGEST_CHANGE)))
    return replace(program, statements=tuple(rows), style=style)


def _constrain(program: Program, rng: random.Random, style: int) -> Program:
    """One more condition somewhere before the answer."""
    rows = list(program.statements)
    place = rng.randint(1, len(rows) - (program.asks is not None))
    person = rng.choice([row.who for row in rows[:place]])
    rows.insert(place, Statement(rng.choice(CHANGES[:2]), person, None, rng.randint(2, LARGEST_CHANGE)))
    return replace(program, statements=tuple(rows), style=style)


def _shorten(program: Program, style: int) -> Program | None:
    """Without the last step, where something remains to be asked."""
    rows = program.statements[:-1]
    derived = [row for row in rows if row.op != "given"]
    if not derived:
        return None
    return replace(program, statements=rows, target=derived[-1].who, style=style)
