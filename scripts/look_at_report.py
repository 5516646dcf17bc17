"""Looks at a run's report as a reader does, in headless Chromium, then at the same run with hostile texts planted in it.

    python scripts/look_at_report.py RUN [RUN ...] [--out DIR]

No console error, no request, every section, both viewers by click and by keys, nothing wider than the window; screenshots at 1280 and
390 px, light and dark, in DIR/plain and DIR/hostile. Needs chromium, node and npm (playwright-core comes into .benchmark); without one of
them it says so and does nothing. Ends with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlef.report.page import write_report

HERE = Path(__file__).parent
BROWSER = HERE.parent / ".benchmark" / "playwright"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`${alert(3)}</script><!--<script> $$\\frac{1}{2}$$ \\[x\\] \u202eturned \x1b[31m "
# Where a model's words, or words that a damaged file may hold, stand.
TEXTS = {"question", "text", "answer", "rule", "detail", "teacher", "operation", "chosen", "rejected", "flaw", "solution"}
EVERY = 3  # a row is planted of so many


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path(".benchmark/report"), metavar="DIR")
    options = parser.parse_args()
    for needed in ("chromium", "node", "npm"):
        if shutil.which(needed) is None:
            print(f"skipped: {needed} is not installed")
            return 0
    if not (BROWSER / "node_modules" / "playwright-core").is_dir():
        BROWSER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(BROWSER), "playwright-core@1"], check=True)
    code = look(options.runs, options.out / "plain")
    planted = options.out / "run"
    shutil.rmtree(planted, ignore_errors=True)
    plant(options.runs[0], planted)
    return max(code, look([planted], options.out / "hostile"))


def look(runs: list[Path], out: Path) -> int:
    """Write the page of the runs into `out` and look at it there."""
    out.mkdir(parents=True, exist_ok=True)
    write_report(*runs, out=out / "report.html")
    return subprocess.run(["node", str(HERE / "look_at_report.mjs"), str(out), str(BROWSER)]).returncode


def plant(run: Path, target: Path) -> None:
    """A copy of the run, of what the report reads, with hostile texts in its problems, answers, names of rules and of metrics."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("model", "wandb", "checkpoints", "shards", "superseded"))
    for file in sorted(target.rglob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [planted(row) if number % EVERY == 0 else row for number, row in enumerate(lines)]
        if file.name == "metrics.jsonl":
            rows = [row | {HOSTILE: 1.0} for row in lines]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in target.glob("*/manifest.json"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        stored.pop("sha256", None)  # it is no longer as it was sealed
        for part in ("operations", "eliminated", "by_flaw", "left_out"):
            if isinstance(stored["result"].get(part), dict):
                stored["result"][part][HOSTILE] = 0.5 if part == "by_flaw" else 5
        file.write_text(json.dumps(stored), encoding="utf-8")
    for file in target.glob("*/results.json"):
        results = json.loads(file.read_text(encoding="utf-8"))
        results[HOSTILE] = next(iter(results.values()))
        file.write_text(json.dumps(results), encoding="utf-8")


def planted(row: Any) -> Any:
    """The row with a hostile text before each text of TEXTS, however deep."""
    if not isinstance(row, dict):
        return row
    return {key: HOSTILE + value if key in TEXTS and isinstance(value, str) else planted(value) for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
