#!/usr/bin/env bash
# Opens a run's report in headless Chromium: no console error, no request, all sections, both viewers by click and by keys; screenshots
# at 1280 and 390 px, light and dark. Usage: look_at_report.sh RUN [RUN ...] [OUT=folder]. Needs chromium, node and npm; else it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
for needed in chromium node npm; do
  command -v "$needed" > /dev/null || { echo "skipped: $needed is not installed"; exit 0; }
done
out=.benchmark/report runs=()
for word in "$@"; do
  case "$word" in OUT=*) out="${word#OUT=}" ;; *) runs+=("$word") ;; esac
done
mkdir -p "$out" .benchmark/playwright
[ -d .benchmark/playwright/node_modules/playwright-core ] ||
  npm install --silent --no-fund --no-audit --prefix .benchmark/playwright playwright-core@1
python -m rlef report "${runs[@]}" --out "$out/report.html"
node scripts/look_at_report.mjs "$out"
