"""Locks of builds that a kill broke off: removed, waited for, or left to who holds them."""

from __future__ import annotations

import os
import time

import pytest

from reward_models.operators import free_builds


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Of an operator of DeepSpeed's, an hour old, as is what was built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    for name in ("lock", "build.ninja"):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - 3600,) * 2)
    return folder / "lock"


def test_a_lock_that_nobody_holds_is_removed_at_once(lock, capsys):
    began = time.monotonic()
    free_builds()
    assert not lock.exists() and (lock.parent / "build.ninja").exists()
    assert time.monotonic() - began < 30 and not capsys.readouterr().err


def test_one_that_a_process_holds_stays(lock):
    with lock.open():
        free_builds()
    assert lock.exists()


def test_a_young_one_is_waited_for(lock, capsys):
    os.utime(lock)
    began = time.monotonic()
    free_builds(idle=2.0)
    assert not lock.exists() and time.monotonic() - began > 1.5
    assert "broken off, or another host's; waiting for at most 2 s" in capsys.readouterr().err


def test_an_extension_that_is_not_deepspeeds_is_left_alone(lock):
    other = lock.parent.rename(lock.parents[1] / "my_kernel") / "lock"
    free_builds()
    assert other.exists()


def test_no_folder_needs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    free_builds()
