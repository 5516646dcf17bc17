"""Edges after `wandb sync`, against a server that is made up; the saved workspace and the report name what is logged."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from rlef.run_dir import RunDir, digest, write_json
from tests.test_scripts import script


@pytest.fixture
def finished(tmp_path):
    """A run of three stages: sft reads problems and a file from outside, ppo reads sft twice."""
    run = RunDir(tmp_path / "my run")
    run.create({"tracking": {"project": "ours", "entity": None}})

    def finish(name, inputs):
        fingerprint = {f"{name}.lr": "1"} | {f"input {key}": value for key, value in inputs.items()}
        (run.start(name, fingerprint) / "file").write_text(name)
        run.finish(name, fingerprint, 1.0, {})

    finish("problems", {})
    finish("sft", {"problems": run.outputs_digest("problems"), "init": "0" * 64})
    finish("ppo", {"init": run.outputs_digest("sft"), "prompts": run.outputs_digest("sft")})
    write_json(run.info_file, {"wandb": {"problems": "id1", "sft": "id2", "ppo": "id3", "evaluate": "id4"}})
    return run


@pytest.fixture
def redone(finished):
    """SFT twice, PPO once, under settings that were changed since."""
    finished.supersede("sft", "ppo")
    write_json(finished.info_file, finished.info() | {"wandb": {"problems": "id1", "sft": "id5"}})
    finished.supersede("sft")
    return finished


class Api:
    """A server that knows some runs and artifacts."""

    def __init__(self, runs, artifacts):
        self.runs = {name: SimpleNamespace(used=[], tags=["mine"], updates=[]) for name in runs}
        for run in self.runs.values():
            run.update = lambda run=run: run.updates.append(run.tags)
            run.used_artifacts, run.use_artifact = (lambda run=run: run.used), run.used.append
        self.artifacts = {name: SimpleNamespace(id=name) for name in artifacts}

    def run(self, path):
        return self._found(self.runs, path)

    def artifact(self, path):
        return self._found(self.artifacts, path)

    def _found(self, held, path):
        if path not in held:
            raise ValueError(f"no {path}")
        return held[path]


def aliased(run, stage):
    return f"my-run-{stage}:{digest(run.manifest(stage).fingerprint)[:12]}"


def test_a_dry_run_names_every_edge(finished, capsys):
    assert script("wandb_lineage").main([str(finished.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{aliased(finished, 'problems')} -> sft (id2) as problems",
        f"{aliased(finished, 'sft')} -> ppo (id3) as init",
        f"{aliased(finished, 'sft')} -> ppo (id3) as prompts",
    ]


def test_edges_are_added_once_and_what_is_missing_is_told(finished):
    lineage = script("wandb_lineage")
    edges = lineage.edges(finished)
    names = [f"e/ours/{aliased(finished, stage)}" for stage in ("problems", "sft")]
    api = Api(["e/ours/id2", "e/ours/id3"], names)
    assert lineage.add(api, "e/ours", edges) == [] == lineage.add(api, "e/ours", edges)
    assert {path: [one.id for one in run.used] for path, run in api.runs.items()} == {"e/ours/id2": names[:1], "e/ours/id3": names[1:]}
    told = lineage.add(Api(["e/ours/id3"], []), "e/ours", edges)
    assert told[0].startswith("sft (id2): ") and [aliased(finished, "sft") in one for one in told] == [False, True, True]


def test_a_dry_run_names_what_would_be_tagged_after_the_edges(finished, capsys):
    write_json(finished.info_file, finished.info() | {"wandb_superseded": ["old1", "old2"]})
    assert script("wandb_lineage").main([str(finished.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == ["old1: superseded", "old2: superseded"]


def test_runs_of_redone_work_are_tagged_once(redone):
    lineage = script("wandb_lineage")
    old = redone.info()["wandb_superseded"]
    assert old == ["id2", "id3", "id5"] and redone.info()["wandb"] == {"problems": "id1"}
    api = Api(["e/ours/id1", "e/ours/id2", "e/ours/id5"], [])
    for _ in range(2):
        assert [one.partition(":")[0] for one in lineage.tag(api, "e/ours", old)] == ["id3"]
    updates = {path: run.updates for path, run in api.runs.items()}
    assert updates == {"e/ours/id1": [], "e/ours/id2": [["mine", "superseded"]], "e/ours/id5": [["mine", "superseded"]]}


def test_mistakes_are_told(finished, tmp_path, capsys):
    lineage = script("wandb_lineage")
    assert lineage.main([str(tmp_path / "nothing"), "--dry-run"]) == 2 and "no finished stage" in capsys.readouterr().err
    assert lineage.main([str(finished.root)]) == 2 and "--entity" in capsys.readouterr().err


def test_without_its_package_the_workspace_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    assert script("wandb_workspace").main(["me", "ours", "--dry-run"]) == 2 and "rlef[workspaces]" in capsys.readouterr().err


def test_workspace_and_report_hold_every_chart_and_table(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    made = script("wandb_workspace")
    assert made.main(["me", "ours", "--group", "my run", "--dry-run"]) == 0
    decoder, text, specs = json.JSONDecoder(), capsys.readouterr().out.strip(), []
    while text:
        one, end = decoder.raw_decode(text)
        specs.append(json.dumps(one))
        text = text[end:].strip()
    charts = {name for section in made.CHARTS.values() for chart in section for name in chart}
    assert len(specs) == 2
    for spec in specs:
        assert {name for name in (*charts, *made.TABLES) if f'"{name}"' not in spec} == set() and "my run" in spec
