#!/usr/bin/env bash
# Creates or reuses .venv and installs rlef with the tested versions; quick where nothing changed. Sourced by the other scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/.rlef-stamp 2>/dev/null || true)" != "$stamp" ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: rlef needs Python 3.11 or newer as python3" >&2; exit 2; }
  echo "installing into .venv: some minutes, 2 GB of disk (more with a torch for GPUs) ..."
  [ -x .venv/bin/python ] || python3 -m venv .venv
  # torch first: left to the other packages, pip would take the newest build with gigabytes of CUDA libraries.
  # RLEF_TORCH chooses its build: "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu", or .../cu130 on a GPU machine.
  # shellcheck disable=SC2086
  .venv/bin/python -m pip install -q ${RLEF_TORCH:-torch==2.13.0}
  .venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
  echo "$stamp" > .venv/.rlef-stamp
  echo "installed; in a shell of your own: source .venv/bin/activate"
fi
export PATH="$PWD/.venv/bin:$PATH"
