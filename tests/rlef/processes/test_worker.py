"""How a rank tells that it failed."""

from __future__ import annotations

import json
import os
import signal

from reward_models import stopping
from rlef.processes import worker


def test_a_rank_that_is_ended_while_it_tells_of_its_failure_tells_it_once(tmp_path, capsys, monkeypatch):
    before = stopping.listen()
    write = json.dump
    monkeypatch.setattr(json, "dump", lambda *args: (write(*args), os.kill(os.getpid(), signal.SIGTERM)))  # the launcher ends the others
    try:
        worker._tell(ValueError("the fake fell over"), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.count("ValueError: the fake fell over") == 1
    assert json.loads((tmp_path / "failure.json").read_text())["rank"].startswith("rank 0 on")
