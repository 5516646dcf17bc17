"""What a command prints with nothing set that would silence others, and what of it is not ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = [
    r"",
    r"\[\d+/\d+\] \w+( \.\.\.|: .*)",  # a stage begins, ends, tells its results
    r"  \w+(: \w+)?: \d+/\d+, [\d.]+ (s|min|h) left .*",  # progress
    r"  alarm: iteration \d+: .*",
    r"run directory: .*",
    r"report: .*",
]


def printed(*words: object, cwd: Path = ROOT, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    silenced = ("WANDB_MODE", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
    kept = {key: value for key, value in os.environ.items() if key not in silenced}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(ROOT)]))
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=900)


def foreign(text: str) -> list[str]:
    return [line for line in text.splitlines() if not any(re.fullmatch(pattern, line) for pattern in OURS)]
