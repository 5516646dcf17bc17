#!/usr/bin/env bash
# From nothing to a report: installs, then runs the whole loop on the embedded problems. Arguments are overrides, e.g. run.seed=1 run.dir=runs/seed_1.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
began=$(date +%s)
rlef run configs/quickstart.yaml "$@"
echo "the run took $(( $(date +%s) - began )) s; $(python -c 'from rlef.commands.doctor import gflops; print(f"this machine: {gflops():.0f} GFLOP/s in fp32 matrix products")')"
