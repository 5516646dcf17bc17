"""What is redone when something changes, and what is left alone: fingerprints, successors, files that are gone."""

from __future__ import annotations

import json

import pytest
import yaml

from rlef import pipeline
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.processes import launch
from rlef.run_dir import RunDir, folder_digests, outside_digest, write_json

STAGES = {
    "problems": {"seeds": 10},
    "sft": {"data": "seeds"},
    "label": {},
    "irm": {},
    "prm": {},
    "ppo": {"prompts": "problems"},
    "dpo": {"prompts": "problems"},
    "evaluate": {},
    "report": {},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"model": {"random": {}}, "tracking": {"wandb": "disabled"}, "stages": STAGES}, sort_keys=False)
    )
    ran: list[str] = []

    def fake(config, run_dir, name, folder, inputs, kind, lead):
        ran.append(name)
        (folder / "out.txt").write_text(config.stages[name].model_dump_json() if name != "evaluate" else "same")
        return {}

    monkeypatch.setattr(launch, "run_stage", fake)

    def go(*overrides, **options):
        ran.clear()
        pipeline.run(load_config("c.yaml", overrides), **options)
        return list(ran)

    return go


def superseded(folder):
    return sorted(str(one.relative_to(folder)).split("/", 1)[1] for one in folder.glob("*/*"))


def set_seconds(name, seconds):
    run = RunDir("runs/c")
    manifest = run.manifest(name)
    run.finish(name, manifest.fingerprint, seconds, manifest.result)


def test_siblings_of_a_changed_stage_stay(run, tmp_path):
    assert run() == list(STAGES)
    assert run("ppo.iterations=3") == ["ppo", "evaluate", "report"]
    assert superseded(tmp_path / "runs" / "c" / "superseded") == ["evaluate", "ppo", "report"]
    assert run("ppo.iterations=3") == []


def test_only_moves_away_what_no_longer_fits(run, tmp_path):
    run()
    assert run("irm.margin=0.5", only="irm") == ["irm"]
    assert not (tmp_path / "runs" / "c" / "ppo").exists() and (tmp_path / "runs" / "c" / "prm").exists()
    assert run("irm.margin=0.5") == ["ppo", "dpo", "evaluate", "report"]


def test_only_runs_on_what_is_there(run):
    run()
    assert run("sft.max_steps=3", only="ppo") == []


def test_dear_successors_are_asked_for_before_anything_is_written(run, tmp_path):
    run()
    set_seconds("ppo", 700.0)
    config = tmp_path / "runs" / "c" / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(UserError, match=r"(?s)ppo took long.*--yes"):
        run("sft.max_steps=3")
    assert config.read_bytes() == before and not (tmp_path / "runs" / "c" / "superseded").exists()
    assert run("evaluate.count=3") == ["evaluate", "report"]
    assert run("sft.max_steps=3", "evaluate.count=3", yes=True)[0] == "sft"


def test_a_file_that_is_gone_is_made_again(run, tmp_path):
    run()
    (tmp_path / "runs" / "c" / "prm" / "out.txt").unlink()
    assert run() == ["prm", "ppo", "dpo", "evaluate", "report"]


def test_a_deleted_stage_that_comes_out_the_same_redoes_nothing_else(run, tmp_path):
    run()
    folder = tmp_path / "runs" / "c" / "label"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert run() == ["label"]


def test_rows_decoded_together_change_nothing(run):
    run()
    assert run("evaluate.batch_size=7", "label.batch_size=9", "ppo.score_batch_size=3", "ppo.rollout_batch_size=3") == []


def test_the_reason_names_the_key(run, capsys):
    run()
    run("model.random.layers=2", "problems.held_out=20")
    shown = capsys.readouterr().out
    assert "problems: changed: problems.held_out;" in shown
    run("model.step_delimiter=;", "model.random.layers=2", "problems.held_out=20")
    assert "sft: changed: model.step_delimiter;" in capsys.readouterr().out


def test_a_moved_model_is_the_same_and_a_changed_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"path": "a"}, "stages": STAGES}, sort_keys=False))
    inputs = {"problems": "problems"}

    def print_(*overrides):
        return pipeline.fingerprint(load_config("c.yaml", overrides), RunDir("r"), "sft", inputs)

    first = print_()
    assert print_("model.path=b") == first
    (tmp_path / "b" / "config.json").write_text('{"x": 1}')
    assert pipeline.changed_keys(first, print_("model.path=b")) == ["contents of model"]


def test_a_large_file_is_known_by_size_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("rlef.run_dir.WHOLE_BYTES", 10)
    monkeypatch.setattr("rlef.run_dir.END_BYTES", 4)
    file = tmp_path / "x"
    seen = set()
    for content in (b"a" * 20, b"a" * 21, b"a" * 19 + b"b", b"b" + b"a" * 19):
        file.write_bytes(content)
        seen.add(outside_digest(file))
    assert len(seen) == 4


def test_what_is_not_finite_is_null_in_every_json_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1, float("inf")], "c": (0.5,)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1, None], "c": [0.5]}


def test_a_policy_outside_the_run_is_known_by_its_contents(run, tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    run("evaluate.policies=[sft, policy]")
    assert run("evaluate.policies=[sft, policy]") == []
    (tmp_path / "policy" / "config.json").write_text('{"x": 1}')
    assert run("evaluate.policies=[sft, policy]") == ["evaluate", "report"]


def test_a_trainers_own_notes_are_no_output(tmp_path):
    for name in ("training_args.bin", "model.safetensors"):
        (tmp_path / name).touch()
    assert list(folder_digests(tmp_path)) == ["model.safetensors"]


def test_an_interrupted_ppo_does_not_go_on_with_fresh_rounds_of_other_settings(run, tmp_path, monkeypatch):
    names = ("problems", "evolve", "respond", "sft", "label", "irm", "prm")
    stages = {name: {} for name in names} | {"ppo": {"fresh_every": 2}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"random": {}}, "stages": stages}, sort_keys=False))
    begun: list[bool] = []

    def interrupted(config, run_dir, name, folder, inputs, kind, lead):
        (folder / "out.txt").write_text("same")  # no problem was evolved otherwise
        if name == "ppo":
            begun.append((folder / "begun").is_file())
            (folder / "begun").write_text("")
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(launch, "run_stage", interrupted)
    for overrides in ((), (), ("evolve.band=[0.3, 0.9]",), ("evolve.band=[0.3, 0.9]", "evolve.batch_size=8")):
        with pytest.raises(KeyboardInterrupt):
            run(*overrides)
    assert begun == [False, True, False, True]


def test_what_feedback_alone_reads_redoes_no_evolution_by_weights(run, tmp_path):
    stages = {name: {} for name in ("problems", "evolve", "respond", "sft")} | {"evolve_2": {"kind": "evolve", "choose": "feedback"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"random": {}}, "stages": stages}, sort_keys=False))
    assert run() == list(stages)
    assert run("evolve.band=[0.3, 0.9]", "evolve.samples=4") == []
    assert run("evolve_2.band=[0.3, 0.9]") == ["evolve_2"]
