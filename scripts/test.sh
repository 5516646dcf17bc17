#!/usr/bin/env bash
# Everything that must hold: linter, types, unit tests, then the slow ones (whole pipeline, several processes).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
pyright
# By file: the tests of one often share a run that takes a while to make.
pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile
pytest -m "slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
