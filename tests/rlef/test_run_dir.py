"""The files of the frame: what is not as it was written is a user's message, and a run directory that cannot be written to is one at once."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path

import pytest

from rlef.cli import main
from rlef.errors import UserError
from rlef.run_dir import RunDir


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    folder = made.start("sft", {"a": "1"})
    (folder / "rows.jsonl").write_text("{}\n")
    made.finish("sft", {"a": "1"}, 3.0, {"loss": 0.5, "by_depth": {1: float("nan")}})
    return made


def test_a_manifest_is_read_as_it_was_written(run):
    manifest = run.manifest("sft")
    assert manifest is not None
    assert (manifest.fingerprint, list(manifest.files), manifest.seconds) == ({"a": "1"}, ["rows.jsonl"], 3.0)
    assert manifest.result == {"loss": 0.5, "by_depth": {"1": None}} and manifest.sha256 is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.5", "0.7"),
        lambda text: text.replace('"loss"', '"lost"'),
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "",
        lambda text: json.dumps({"files": {}, "seconds": "long", "result": {}, "fingerprint": {}}),
    ],
)
def test_a_damaged_manifest_is_told_with_its_place(run, damage):
    file = run.stage("sft") / "manifest.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=r"sft/manifest\.json: not as it was written"):
        run.manifest("sft")


@pytest.mark.parametrize("text", ["{", "3", '{"wandb": 3}', '{"wandb_superseded": "x"}', "\0"])
def test_a_damaged_run_json_too(run, text):
    assert run.info() == {"wandb": {}, "wandb_superseded": []}
    run.info_file.write_text(text)
    with pytest.raises(UserError, match=r"run\.json: not as it was written"):
        run.info()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_directory_that_cannot_be_written_to_is_told_before_any_work(tmp_path, monkeypatch, number):
    def closed(self: Path, *_, **__):
        raise OSError(number, "no", str(self))

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(UserError, match=r"run\.dir: .*: no run can be kept there \(no\)"), RunDir(tmp_path / "run").locked():
        raise AssertionError("not before any work")


def test_a_run_that_finds_no_room_says_so_and_goes_on_when_there_is(tmp_path, capsys):
    """A limit on the size of files stands for the disk: a write beyond it fails in the same place."""
    config = tmp_path / "run.yaml"
    config.write_text("tracking: {wandb: disabled}\nstages: {problems: {seeds: 300, held_out: 10}}\n")
    words = ["run", str(config), f"run.dir={tmp_path / 'run'}"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"error: {tmp_path / 'run'}: no space left to write there" in capsys.readouterr().err
    assert main(words) == 0 and len((tmp_path / "run" / "problems" / "seeds.jsonl").read_text().splitlines()) == 300
