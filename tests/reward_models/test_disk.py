"""A full or closed disk is one message with the place, whichever library met it; every other error stays what it was."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from reward_models import checkpoints, disk
from reward_models.errors import UserError

OF = {"seed": "0"}


def raised(error: Exception) -> str:
    with pytest.raises(UserError) as found, disk.told("runs/a"):
        raise error
    return str(found.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file_or_else_the_folder(number):
    assert raised(OSError(number, os.strerror(number))).startswith("runs/a: no space left")
    assert raised(OSError(number, os.strerror(number), "runs/a/ppo/x")).startswith("runs/a/ppo/x: no space left")


@pytest.mark.parametrize(
    "said", ["I/O error: No space left on device (os error 28)", "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"]
)
def test_what_is_no_oserror_any_more_is_known_by_its_words(said):
    assert "fix: free space" in raised(RuntimeError(said))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: save_file({"a": torch.zeros(10_000)}, file),
        lambda file: torch.save({"a": torch.zeros(10_000)}, file),
        lambda file: file.write_text(json.dumps(list(range(10_000)))),
    ],
    ids=["safetensors", "torch", "json"],
)
def test_every_library_that_writes_checkpoints_is_understood(tmp_path, write):
    """A limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="no space left to write there"), disk.told(tmp_path):
            write(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_cause_counts():
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "no space left" in raised(error)


def test_a_read_only_place_is_no_full_one():
    assert "runs/b: may not be read or written" in raised(OSError(errno.EROFS, "Read-only file system", "runs/b"))


def test_what_has_its_own_words_keeps_them():
    own = UserError("no run can be kept there (Permission denied)")
    own.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(UserError) as found, disk.told("runs/a"):
        raise own
    assert found.value is own


def test_every_other_error_stays_what_it_was():
    for error in (FileNotFoundError(errno.ENOENT, "none", "x"), ZeroDivisionError("space"), KeyError("disk")):
        with pytest.raises(type(error)), disk.told("runs/a"):
            raise error


def test_after_a_checkpoint_that_found_no_room_the_last_whole_one_is_used(tmp_path, monkeypatch):
    def write(number: int) -> None:
        partial = checkpoints.begin(tmp_path, number)
        (partial / "state.json").write_text(str(number))
        checkpoints.finish(partial, OF, keep=2)

    write(1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space left"), disk.told(tmp_path):
        patch.setattr("os.fsync", full)
        write(2)
    newest = checkpoints.newest(tmp_path, OF)
    assert newest == checkpoints.place(tmp_path, 1) and (newest / "state.json").read_text() == "1"
    write(2)  # the same command, when there is room again
    assert checkpoints.newest(tmp_path, OF) == checkpoints.place(tmp_path, 2)
