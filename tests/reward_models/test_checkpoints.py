"""A checkpoint is whole or does not count: every file of it damaged in turn, kills between its steps, which ones stay."""

from __future__ import annotations

import json
import shutil

import pytest

from reward_models import checkpoints
from reward_models.errors import UserError

OF = {"reference": "abc"}


def write(root, number, keep=2, of=OF):
    partial = checkpoints.begin(root, number)
    (partial / "policy").mkdir()
    (partial / "policy" / "weights").write_bytes(bytes(range(256)) * number)
    (partial / "state.json").write_text(json.dumps({"iteration": number}))
    return checkpoints.finish(partial, of, keep=keep)


def names(root):
    return sorted(folder.name for folder in root.iterdir())


def test_the_last_ones_stay_and_the_newest_is_found(tmp_path):
    assert checkpoints.newest(tmp_path, OF) is None
    for number in (8, 9, 10, 11):
        assert write(tmp_path, number, keep=3) == checkpoints.newest(tmp_path, OF)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file):
    file.write_bytes(b"")


def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def gone(file):
    file.unlink()


@pytest.mark.parametrize("damage", [cut, emptied, flipped, gone])
@pytest.mark.parametrize("name", ["policy/weights", "state.json", checkpoints.MANIFEST])
def test_a_damaged_one_is_passed_over(tmp_path, capsys, name, damage):
    whole, damaged = write(tmp_path, 1), write(tmp_path, 2)
    damage(damaged / name)
    assert checkpoints.newest(tmp_path, OF) == whole
    told = capsys.readouterr().err
    onwards = f"going on from {whole}\n"
    if (name, damage) == (checkpoints.MANIFEST, gone):
        assert told == onwards  # it was never finished
    else:
        assert "checkpoint-2 is damaged" in told and (damage is gone or name in told) and told.endswith(onwards)
    # What goes on from the one before takes its place, and it no longer counts among those that stay.
    write(tmp_path, 2)
    assert checkpoints.newest(tmp_path, OF) == damaged and names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_where_none_is_whole_it_says_that_it_begins_anew(tmp_path, capsys):
    assert checkpoints.newest(tmp_path, OF) is None and capsys.readouterr().err == ""
    flipped(write(tmp_path, 1) / "state.json")
    assert checkpoints.newest(tmp_path, OF) is None
    assert f"{tmp_path} holds no whole checkpoint; beginning anew" in capsys.readouterr().err


@pytest.mark.parametrize("place", range(2000, 2400, 13))
def test_any_bit_of_the_manifest_counts(tmp_path, place):
    whole, damaged = write(tmp_path, 1), write(tmp_path, 2, of=OF | {"more": "x" * 2000})
    data = bytearray((damaged / checkpoints.MANIFEST).read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    (damaged / checkpoints.MANIFEST).write_bytes(data)
    assert checkpoints.newest(tmp_path, OF) == whole


def test_what_is_damaged_and_newer_goes_with_the_next_one(tmp_path):
    write(tmp_path, 10)
    flipped(write(tmp_path, 20) / "state.json")
    assert checkpoints.newest(tmp_path, OF).name == "checkpoint-10"
    write(tmp_path, 13)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-13"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["_sync", "seal", "prune"])
def test_a_kill_on_the_way_leaves_the_one_before(tmp_path, monkeypatch, moment):
    before = write(tmp_path, 1)
    real = getattr(checkpoints, moment)

    def killed(*arguments, **named):
        if moment == "seal":  # after it, before the rename
            real(*arguments, **named)
        raise Killed

    monkeypatch.setattr(checkpoints, moment, killed)
    with pytest.raises(Killed):
        write(tmp_path, 2)
    monkeypatch.setattr(checkpoints, moment, real)
    newest = checkpoints.newest(tmp_path, OF)
    assert newest == (tmp_path / "checkpoint-2" if moment == "prune" else before)
    write(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["checkpoint-3"]


def test_one_that_a_trainer_writes_in_its_place_counts_when_it_is_sealed(tmp_path):
    first = write(tmp_path, 1)
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(first, folder)
    (folder / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path, OF) == first
    checkpoints.seal(folder, OF)
    checkpoints.prune(folder, keep=1)
    assert checkpoints.newest(tmp_path, OF) == folder and names(tmp_path) == ["checkpoint-2"]


def test_one_of_another_training_is_a_mistake(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(UserError, match=r"of a training with other labels or settings \(processes, reference\)"):
        checkpoints.newest(tmp_path, {"reference": "other", "processes": "2"})
