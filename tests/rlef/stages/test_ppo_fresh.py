"""PPO asks for fresh rounds: a real child process evolves the last prompts by their pass rates, and a resumed run finds what it made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlef import children
from rlef.cli import main
from rlef.config import Config
from rlef.errors import UserError
from rlef.records import PassRate, Problem, read_jsonl, write_jsonl
from rlef.rl.reward import Score
from rlef.rl.sampling import Sample, prompt_file
from rlef.rollout.base import Completion
from rlef.run_dir import RunDir
from rlef.stages import fresh, ppo
from rlef.stages.context import StageContext
from rlef.symbolic import make_problems
from rlef.tracking import Tracker

EVERY, ITERATIONS, PROMPTS = 2, 5, 4


@pytest.fixture
def sources(inputs, tmp_path):
    """Symbolic prompts, and the folders of the stages that made them."""
    (tmp_path / "problems").mkdir()
    write_jsonl(tmp_path / "problems" / "seeds.jsonl", make_problems(8, depths=(1, 2), seed=1, split="train"))
    write_jsonl(tmp_path / "problems" / "held_out.jsonl", make_problems(8, depths=(1, 2), seed=1, split="held_out"))
    write_jsonl(tmp_path / "prompts" / "prompts.jsonl", make_problems(20, depths=(1, 3), seed=0, split="train"))
    return inputs | {"problems": tmp_path / "problems", "evolve": tmp_path / "evolve"}


def context(folder, inputs, **settings):
    stage = {"kind": "ppo", "iterations": ITERATIONS, "prompts_per_iteration": PROMPTS, "samples_per_prompt": 2, "max_tokens": 12,
             "critic_warmup": 1, "minibatches": 2, "policy_lr": 1e-3, "fresh_every": EVERY}  # fmt: skip
    stages = {"problems": {"kind": "problems"}, "evolve": {"kind": "evolve"}, "ppo": stage | settings}
    config = Config.model_validate({"run": {"dir": str(folder)}, "model": {"random": {}}, "stages": stages})
    folder.mkdir(exist_ok=True)
    tracker = Tracker("ppo", folder / "metrics.jsonl", quiet=True)
    return StageContext("ppo", config, config.stages["ppo"], inputs, folder, tracker, folder / "journal.sqlite")


@pytest.mark.slow
def test_ppo_practises_on_what_fresh_rounds_make_and_resumes_bitwise(sources, tmp_path, monkeypatch):
    taken: dict[int, list[str]] = {}
    real_take = fresh.FreshRounds.take

    def take(self, iteration):
        chosen = real_take(self, iteration)
        assert all(one.problem.answer is None and one.problem.truth is None for one in chosen)
        taken[iteration] = [one.problem.id for one in chosen]
        return chosen

    monkeypatch.setattr(fresh.FreshRounds, "take", take)
    straight = tmp_path / "straight"
    ppo.run(context(straight, sources))
    made = {1: read(straight / "fresh" / "round_001"), 2: read(straight / "fresh" / "round_002")}
    before = {one.id for one in read_jsonl(prompt_file(sources["prompts"]), Problem)}
    for number, problems in made.items():
        manifest = json.loads((straight / "fresh" / f"round_{number:03d}" / "manifest.json").read_text())
        assert set(manifest["files"]) == {"evolved.jsonl", "eliminated.jsonl", "contamination.jsonl"}
        assert manifest["result"]["made"] == EVERY * PROMPTS
        # The parents are what the last iterations practised on, each on the line that its pass rate calls for: nothing was solved.
        practised = {one for iteration in range((number - 1) * EVERY, number * EVERY) for one in taken[iteration]}
        assert problems and {one.lineage.parent for one in problems} <= practised
        assert {one.lineage.operation.split(".")[0] for one in problems} == {"down"}
        assert {one.lineage.round for one in problems} == {number}
        # And what was made is what is practised next, with older ones where it is too little.
        assert set(taken[number * EVERY]) & {one.id for one in problems} and set(taken[number * EVERY]) <= before | {
            one.id for one in problems
        }
        before |= {one.id for one in problems}
    rates = read_jsonl(straight / "fresh" / "rates" / "000003.jsonl", PassRate)
    assert [(one.iteration, one.samples) for one in rates] == [(3, 2)] * PROMPTS and {one.problem_id for one in rates} == set(taken[3])
    assert not list((straight / "fresh").rglob("job.json")) and not list((straight / "fresh").rglob("pool"))

    # Killed after a round, before its iterations: the round is not made again, and the weights end bitwise equal.
    real, written = ppo.Checkpoints.write, []

    def killed(self, iteration, *arguments):
        real(self, iteration, *arguments)
        written.append(iteration)
        if iteration == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ppo.Checkpoints, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(context(tmp_path / "killed", sources, save_every=3))
    assert written == [EVERY, 3]  # one before the teacher is asked, for however long
    manifest = tmp_path / "killed" / "fresh" / "round_001" / "manifest.json"
    made_at = manifest.stat().st_mtime_ns
    monkeypatch.setattr(ppo.Checkpoints, "write", real)
    ppo.run(context(tmp_path / "killed", sources, save_every=3))
    assert manifest.stat().st_mtime_ns == made_at
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "killed"))
    assert all((one[name] == other[name]).all() for name in one)


def read(folder):
    return read_jsonl(folder / "evolved.jsonl", Problem)


def test_a_round_that_is_there_is_not_made_again_and_a_failed_one_says_why(sources, tmp_path, tiny, monkeypatch):
    _, tokenizer = tiny
    ctx = context(tmp_path / "run", sources)
    rounds = fresh.FreshRounds(ctx, tokenizer)
    asked = []

    def child(command, **options):
        asked.append(json.loads(Path(command[-1]).read_text()))
        folder = tmp_path / "run" / "fresh" / "round_001"
        if len(asked) == 1:
            (folder / "error.txt").write_text("teacher.max_cost_usd: the next call could exceed 1 USD")
            return 2
        write_jsonl(folder / "evolved.jsonl", make_problems(3, depths=(2, 2), seed=9, split="train"))
        (folder / "result.json").write_text('{"made": 8, "teacher": {"calls": 16, "cost_usd": null, "run_paid_calls": 99}}')
        return 0

    monkeypatch.setattr(children, "wait", child)
    for iteration in range(EVERY):
        chosen = rounds.take(iteration)
        rates = [PassRate(problem_id=one.problem.id, iteration=iteration, pass_rate=1.0, samples=2) for one in chosen]
        write_jsonl(tmp_path / "run" / "fresh" / "rates" / f"{iteration:06d}.jsonl", rates)
    with pytest.raises(UserError, match="fresh round round_001: teacher.max_cost_usd"):
        rounds.take(EVERY)
    fresh_ones = {one.id for one in make_problems(3, depths=(2, 2), seed=9, split="train")}
    rounds = fresh.FreshRounds(ctx, tokenizer)
    assert rounds.account() == {}
    later = [one.problem.id for iteration in (EVERY, EVERY + 1) for one in rounds.take(iteration)]
    assert rounds.account() == {"teacher": {"calls": 16, "cost_usd": None, "run_paid_calls": 99}}
    assert fresh_ones <= set(later) and len(later) == len(set(later)) == EVERY * PROMPTS and len(asked) == 2
    stage = asked[0]["config"]["stages"]["evolve"]
    assert (stage["choose"], stage["rounds"], stage["per_round"], asked[0]["tracked"]) == ("feedback", 1, EVERY * PROMPTS, False)


def test_what_could_not_be_judged_has_no_pass_rate(sources, tmp_path, tiny):
    """A prompt's rate is over its judged answers; one without any is no parent; a round without any is told of."""
    rounds = fresh.FreshRounds(context(tmp_path / "run", sources), tiny[1])
    one, other = rounds.take(0)[:2]

    def sample(prompt, index, r_a, masked):
        score = Score("", ("s",), (), (), 1.0, r_a, None, "1", 0, 0, masked)
        return Sample(prompt, index, Completion((2,), (0.0,), True), score)

    samples = [sample(one, 0, 0.9, False), sample(one, 1, 0.0, True), sample(other, 0, 0.0, True)]
    assert rounds.record(0, samples) == 1.0
    (row,) = read_jsonl(tmp_path / "run" / "fresh" / "rates" / "000000.jsonl", PassRate)
    assert (row.problem_id, row.pass_rate, row.samples) == (one.problem.id, 1.0, 1)
    rounds.record(0, samples[1:])
    rounds.record(1, samples[1:])
    with pytest.raises(UserError, match="round_001: no answer of the round before could be judged"):
        rounds.take(EVERY)


def test_the_stage_tells_what_all_its_rounds_cost(sources, tmp_path, tiny):
    ctx = context(tmp_path / "run", sources)
    made = RunDir(tmp_path / "run" / "fresh")
    for number, (usd, paid) in enumerate([(0.5, 7), (0.25, 9)], 1):
        folder = made.start(f"round_{number:03d}", {})
        write_jsonl(folder / "evolved.jsonl", make_problems(3, depths=(2, 2), seed=number, split="train"))
        made.finish(folder.name, {}, 1.0, {"made": 8, "teacher": {"calls": 4, "cost_usd": usd, "run_paid_calls": paid}})
    rounds = fresh.FreshRounds(ctx, tiny[1])
    rounds.take(2 * EVERY)
    assert rounds.account() == {"teacher": {"calls": 8, "cost_usd": 0.75, "run_paid_calls": 9}}


def test_the_child_is_no_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    code = "import os, sys; sys.exit(any(k in os.environ for k in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'TORCHELASTIC_RUN_ID')))"
    assert children.wait([sys.executable, "-c", code], alone=True) == 0 and children.wait([sys.executable, "-c", code]) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ppo.fresh_every=2", "ppo.prompts=problems"], None),
        (["evolve.choose=feedback"], "needs a policy"),
        (["evolve.band=[0.8, 0.2]"], "evolve.band"),
        (["evolve.prm=prm"], "choose: feedback alone"),
    ],
)
def test_a_config_that_does_not_fit_is_told(overrides, said, capsys, tmp_path):
    code = main(["check", "tests/configs/tiny.yaml", f"run.dir={tmp_path / 'run'}", *overrides])
    assert (code, said is None or said in capsys.readouterr().err) == (0 if said is None else 2, True)
