"""Fresh rounds of evolution while PPO runs: the pass rates of the last prompts choose the operations, and RL goes on with what comes of it.

The "active Evol-Instruct" of RLEIF's third step (WizardMath, arXiv 2308.09583, section 3). The teacher works in a process of its own, which
the main rank starts; what a round made lies in fresh/round_NNN, done when its manifest is there, so that a resumed run finds it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models import stopping
from rlef.children import ChildFailed, run_stage_in
from rlef.config import PpoStage
from rlef.engines import dist
from rlef.errors import UserError
from rlef.models import Tokenizer
from rlef.records import PassRate, Problem, read_jsonl, write_jsonl
from rlef.rl.difficulty import pass_rate
from rlef.rl.sampling import Prompt, Sample, as_prompts, read_practice, take_prompts
from rlef.run_dir import RunDir, digest
from rlef.stages.context import StageContext

LOOK_EVERY_S = 0.5


class FreshRounds:
    """The prompts of each iteration. Round 0 is the prompts that PPO came with; round r begins at iteration r * fresh_every."""

    def __init__(self, ctx: StageContext, tokenizer: Tokenizer) -> None:
        settings: PpoStage = ctx.settings
        assert settings.fresh_every is not None
        self.every = settings.fresh_every
        self._ctx, self._tokenizer, self._settings = ctx, tokenizer, settings
        self._folder = ctx.folder / "fresh"
        # By round, whole: the symbolic teacher needs the truth, which prompts do not have.
        self._problems: list[list[Problem]] = [read_practice(ctx.inputs["prompts"])]
        self._prompts: dict[int, list[Prompt]] = {0: self._ready(self._problems[0])}

    def begins(self, iteration: int) -> bool:
        """Whether the teacher is asked for the prompts of this iteration."""
        return iteration > 0 and iteration % self.every == 0

    def take(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration; at a round's first one the round is made, unless it is there."""
        number = iteration // self.every
        while len(self._problems) <= number:
            self._problems.append(self._round(len(self._problems)))
        if number not in self._prompts:
            self._prompts = {number: self._ready(self._practice(number))}
        count, seed = self._settings.prompts_per_iteration, self._ctx.seed
        return take_prompts(self._prompts[number], iteration - number * self.every, count, f"{seed}/{number}" if number else seed)

    def record(self, iteration: int, samples: Sequence[Sample]) -> float:
        """Keep the pass rates of an iteration's prompts of which an answer could be judged, over all ranks; returns their mean."""
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            if not sample.score.masked:
                groups.setdefault(sample.prompt.problem.id, []).append(sample)
        mine = [PassRate(problem_id=key, iteration=iteration, pass_rate=_rate(group), samples=len(group)) for key, group in groups.items()]
        rows = [row for part in dist.all_gather_object(mine) for row in part]
        if dist.is_main():
            write_jsonl(self._rates_file(iteration), rows)
        return sum(row.pass_rate for row in rows) / max(1, len(rows))

    def account(self) -> dict[str, Any]:
        """The part of the stage's result that says what an endpoint was asked for all rounds and cost; empty for other teachers."""
        rounds = RunDir(self._folder)
        made = [rounds.manifest(_name(number)) for number in range(1, len(self._problems))]
        spent = [manifest.result["teacher"] for manifest in made if manifest is not None and "teacher" in manifest.result]
        if not spent:
            return {}
        parts = {key: [one[key] for one in spent] for key in spent[-1] if not key.startswith("run_")}
        total = {key: None if None in values else sum(values) for key, values in parts.items()}  # prices may come with a later start
        return {"teacher": spent[-1] | total}  # what the whole run has cost stands in the last

    def _rates_file(self, iteration: int) -> Path:
        return self._folder / "rates" / f"{iteration:06d}.jsonl"

    def _ready(self, problems: Sequence[Problem]) -> list[Prompt]:
        return as_prompts(problems, self._tokenizer, self._ctx.config.model, use_answers=self._settings.use_answers)

    def _practice(self, number: int) -> list[Problem]:
        """What the round made; where that is too little for its iterations, filled up with what was there before it."""
        fresh, before = self._problems[number], [problem for made in self._problems[:number] for problem in made]
        lacking = max(0, self.every * self._settings.prompts_per_iteration - len(fresh))
        rng = random.Random(f"practice/{self._ctx.seed}/{number}")
        return [*fresh, *rng.sample(before, min(lacking, len(before)))]

    def _round(self, number: int) -> list[Problem]:
        """The problems of a round: made by the main rank's child process, waited for by the others."""
        rounds, name = RunDir(self._folder), _name(number)
        with stopping.deferred(False):
            if dist.is_main() and rounds.manifest(name) is None:
                self._evolve(number, rounds, name)
            # No collective here: a teacher may take longer than any of their time limits. A main rank that fails ends the others by
            # torchrun.
            while rounds.manifest(name) is None:
                time.sleep(LOOK_EVERY_S)
        return list(read_jsonl(rounds.stage(name) / "evolved.jsonl", Problem, may_be_empty=True))

    def _evolve(self, number: int, rounds: RunDir, name: str) -> None:
        began = time.monotonic()
        measured: dict[str, float] = {}
        for iteration in range((number - 1) * self.every, number * self.every):
            measured |= {row.problem_id: row.pass_rate for row in read_jsonl(self._rates_file(iteration), PassRate, may_be_empty=True)}
        if not measured:
            raise UserError(
                f"{self._ctx.name}: fresh round {name}: no answer of the round before could be judged, so no prompt has a pass rate",
                fix=f"see why {self._ctx.name}.prm or {self._ctx.name}.irm gives no score",
            )
        pool = [problem for made in self._problems for problem in made]
        rates = {"rates": digest(measured), "pool": digest([problem.id for problem in pool])}
        folder = rounds.start(name, rates)
        # The rates of earlier rounds were another policy's.
        write_jsonl(folder / "pool" / "evolved.jsonl", [one.model_copy(update={"pass_rate": measured.get(one.id)}) for one in pool])
        result = self._child(folder)
        (folder / "pool" / "evolved.jsonl").unlink()
        (folder / "pool").rmdir()
        rounds.finish(name, rates, time.monotonic() - began, result)

    def _child(self, folder: Path) -> dict[str, Any]:
        """One round of the evolve stage that the config names, by feedback, in a process that is no rank."""
        ctx, settings = self._ctx, self._settings
        name = ctx.inputs["evolve"].name
        parents = settings.fresh_parents or self.every * settings.prompts_per_iteration
        changes = {"rounds": 1, "choose": "feedback", "per_round": parents, "policy": None, "prm": None, "pool": None}
        config = ctx.config.model_copy(update={"stages": ctx.config.stages | {name: ctx.config.stages[name].model_copy(update=changes)}})
        inputs = {key: str(ctx.inputs[key]) for key in ("problems", "method") if key in ctx.inputs} | {"pool": str(folder / "pool")}
        try:
            return run_stage_in([sys.executable], config, name, folder, inputs, "rlef.stages.evolve:run", tracked=False, alone=True)
        except ChildFailed as failure:
            said = failure.said or f"{failure}; see its traceback above"
            raise UserError(f"{ctx.name}: fresh round {folder.name}: {said}") from None


def _name(number: int) -> str:
    return f"round_{number:03d}"


def _rate(group: Sequence[Sample]) -> float:
    """A prompt's pass rate, weighted by r_A; by its known answer where the run uses answers."""
    problem = group[0].prompt.problem
    answers = [sample.score.given for sample in group]
    return pass_rate(answers, [sample.score.answer for sample in group], known=problem.answer, question=problem.question)
