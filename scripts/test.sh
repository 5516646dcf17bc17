#!/usr/bin/env bash
# Everything that must hold: linter, types, unit tests, then the slow ones (whole pipeline, several processes).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
pyright
pytest -m "not slow and not gpu"
pytest -m "slow and not gpu"
