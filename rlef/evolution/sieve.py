"""What an evolved problem must pass to join the pool: elimination, distance from every held-out problem, novelty; in this order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rlef.config import EvolveStage
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.decontamination import RENUMBERED, Duplicates, HeldOut, Match
from rlef.evolution.elimination import eliminated_by
from rlef.evolution.teachers import Teacher
from rlef.records import Contamination, Eliminated, Problem

Child = tuple[Problem, Problem | None, bool]  # parent, what the teacher made of it, whether the teacher takes both for the same


class Sieve:
    """Remembers what passed. What did not lies in `eliminated`, each row with its rule, and `leaks`, beside the test it repeats."""

    def __init__(self, settings: EvolveStage, teacher: Teacher, tests: Sequence[Problem], known: Iterable[Problem], device: str) -> None:
        """`tests`: what nothing may repeat; `known`: problems that are there already."""
        self._settings, self._teacher = settings, teacher
        self._held_out = HeldOut(tests, run=settings.held_out_run, share=settings.held_out_share)
        self._nearest = _neighbours(settings, tests, device)
        self._seen = Duplicates(settings.near_duplicate_threshold)
        for problem in known:
            self._seen.check_and_add(problem)
        self.eliminated: list[Eliminated] = []
        self.leaks: list[Contamination] = []
        self.rules: Counter[str] = Counter()

    def pass_on(self, group: Sequence[Child]) -> list[Problem]:
        """The children that join the pool."""
        near = self._nearest([child.question if child is not None else "" for _, child, _ in group])
        passed = []
        for (parent, child, same), neighbour in zip(group, near, strict=True):
            if child is None:
                self.rules["no_answer"] += 1
                continue
            found = self._rule(parent, child, same, neighbour)
            if found is None:
                passed.append(child)
            else:
                self.eliminate(child, *found)
        return passed

    def eliminate(self, child: Problem, rule: str, detail: str = "") -> None:
        self.rules[rule] += 1
        self.eliminated.append(Eliminated(problem=child, rule=rule, detail=detail))

    def _rule(self, parent: Problem, child: Problem, same: bool, neighbour: Match | None) -> tuple[str, str] | None:
        """The first rule that drops the child, and the id of the problem that it repeats, where the rule names one."""
        if (failed := self._failed(parent, child, same)) is not None:
            return failed, ""
        leak = self._leak(child, neighbour)
        if leak is not None:
            self.leaks.append(leak)
            if leak.dropped:
                return leak.rule, leak.test_id
        return self._seen.check_and_add(child)

    def _failed(self, parent: Problem, child: Problem, same: bool) -> str | None:
        """The rule of elimination, which sees texts alone: it must not profit from what a symbolic teacher knows."""
        assert child.lineage is not None
        if child.lineage.finished is False:
            return "cut_off"
        teacher = self._teacher
        return eliminated_by(
            parent.question,
            child.question,
            judged_same=same,
            require_question=self._settings.require_question and child.domain == "math",
            template=teacher.templates[parent.domain][child.lineage.operation] if isinstance(teacher, ChatTeacher) else "",
        )

    def _leak(self, child: Problem, neighbour: Match | None) -> Contamination | None:
        """The held-out problem that the child repeats, if any."""
        match = self._held_out.overlap(child)
        kept = match is not None and match.rule == RENUMBERED and not self._settings.drop_renumbered
        if neighbour is not None and (match is None or kept):
            match, kept = neighbour, False
        if match is None:
            return None
        return Contamination(
            evolved_id=child.id,
            test_id=match.test.id,
            evolved=child.question,
            test=match.test.question,
            rule=match.rule,
            ratio=round(match.ratio, 4),
            dropped=not kept,
        )


def _neighbours(settings: EvolveStage, tests: Sequence[Problem], device: str) -> Callable[[Sequence[str]], Sequence[Match | None]]:
    """For texts their nearest tests by the embedding model; without one nothing, and torch is not loaded."""
    if settings.embedding_model is None:
        return lambda texts: [None] * len(texts)
    from rlef.evolution.neighbours import Neighbours
    from rlef.models import pick_device

    return Neighbours(tests, settings.embedding_model, settings.embedding_threshold, pick_device(device)).nearest
