"""The label stage's perturbed steps: which rows they come from and who judges them."""

from __future__ import annotations

from reward_models.records import SteppedSolution
from rlef.config import Config
from rlef.stages.context import StageContext
from rlef.stages.label import _perturb
from rlef.symbolic import SymbolicTeacher, make_problems
from rlef.symbolic.teacher import judge
from rlef.tracking import Tracker

PROBLEMS = {problem.id: problem for problem in make_problems(80, depths=(1, 4), seed=0, split="train")}


def solution(problem, **changes):
    steps = (*problem.solution, f"#### {problem.answer}")
    fields = {"problem_id": problem.id, "question": problem.question, "steps": steps, "labels": (1.0,) * len(steps)}
    return SteppedSolution(**fields | {"labeller": "symbolic", "answer": problem.answer, "correct": True, "split": "train"} | changes)


def test_perturbed_steps_end_right_beginnings_of_training_solutions_and_are_judged(tmp_path):
    stage = {"kind": "label", "perturbed": 3}
    config = Config.model_validate({"model": {"random": {}}, "stages": {"label": stage}})
    ctx = StageContext("label", config, config.stages["label"], {}, tmp_path, Tracker.null())
    first, held_out, wrong, *others = PROBLEMS.values()
    broken = ("Nobody 1+1=3", *wrong.solution)
    rows = [
        *(solution(problem) for problem in (first, *others)),
        solution(held_out, split="held_out"),
        solution(wrong, steps=broken, labels=(0.0,) * len(broken), correct=False),
    ]
    made = _perturb(ctx, SymbolicTeacher(), rows, PROBLEMS)
    whole = {row.problem_id: row.steps for row in rows}
    assert len(made) > 2 * len(others) and len({(row.problem_id, row.steps) for row in made}) == len(made)
    assert not {held_out.id, wrong.id} & {row.problem_id for row in made}
    for row in made:
        last = len(row.steps) - 1
        assert row.steps[:last] == whole[row.problem_id][:last] and row.steps[last] != whole[row.problem_id][last]
        assert list(row.labels) == [float(label) for label in judge(PROBLEMS[row.problem_id], row.steps)] and set(row.labels[:last]) <= {
            1.0
        }
        assert row.labeller == "symbolic, perturbed" and row.correct is None and row.split == "train"
    assert sum(row.labels[-1] == 0.0 for row in made) > 0.9 * len(made)
