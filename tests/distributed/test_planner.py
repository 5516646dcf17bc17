"""The planner against reality: bytes of model states on two ranks under plain torch and ZeRO 0-3, and saved activations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "planner.py"


@pytest.mark.slow
def test_what_is_predicted_is_there():
    done = subprocess.run([sys.executable, str(SCRIPT), "--ranks", "2"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = {row["what"]: row["off"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    states = {what: off for what, off in rows.items() if what.startswith("states")}
    assert len(states) == 9 and len(rows) == 9 + 16  # ZeRO-0 trains no bfloat16
    assert {what: off for what, off in states.items() if abs(off) > 0.1} == {}
    assert {what: off for what, off in rows.items() if abs(off) > 0.15} == {}
