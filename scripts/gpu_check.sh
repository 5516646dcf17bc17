#!/usr/bin/env bash
# Accepts a GPU machine: a line for each check, pass or FAIL or skip, with the reason and its log. Exit code 1 where one failed or there is no GPU.
# Argument: the folder of the logs (default: runs/gpu_check). VLLM: the command `vllm`, for the server (default: that of the PATH).
set -uo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || source scripts/setup.sh
set +e
logs=${1:-runs/gpu_check}
mkdir -p "$logs"
gpus=$(python -c "import torch; print(torch.cuda.device_count())") || exit 1
if [ "$gpus" = 0 ]; then
  echo "FAIL  GPU: torch finds none; see rlef doctor, and RLEF_TORCH in scripts/setup.sh"
  exit 1
fi
python -m rlef doctor
failed=0 run=$logs/run
rm -rf "$run"
VLLM=${VLLM:-$(command -v vllm)}

check() { # name, command
  local name=$1 log began=$SECONDS
  log=$logs/${name//[^A-Za-z0-9]/_}.log
  shift
  if "$@" > "$log" 2>&1; then
    echo "pass  $name ($(( SECONDS - began )) s)"
  else
    echo "FAIL  $name: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-200); see $log"
    failed=1
  fi
}

skip() { echo "skip  $1: $2"; }

# A stage of the smallest whole run, once more from its start, with other settings.
stage() { python -m rlef "$1" tests/configs/tiny.yaml "run.dir=$run" launch.device=cuda --yes "${@:2}"; }
again() { rm -rf "${run:?}/$1" && stage "$@"; }

check "bf16 products" python -c "
import torch
a, b = torch.randn(2, 1024, 1024, device='cuda').bfloat16()
apart = ((a @ b).float() - a.float() @ b.float()).norm() / (a.float() @ b.float()).norm()
assert apart < 1e-2, f'{apart:.1e} from fp32'"
check "a whole run" python -m rlef run tests/configs/tiny.yaml "run.dir=$run" launch.device=cuda
for zero in 2 3; do
  json=configs/deepspeed/zero$zero.json
  check "SFT under ZeRO-$zero" again sft model.dtype=bfloat16 launch.deepspeed=$json
done
check "PPO under ZeRO-2" again ppo model.dtype=bfloat16 launch.deepspeed=configs/deepspeed/zero2.json

# rollout/sync_difference is asked in both: a probe that the engine and the trainer must give the same log-probabilities.
if python -c "import importlib.util as util; raise SystemExit(util.find_spec('vllm') is None)"; then
  check "PPO with vLLM in its process, sync probe" again ppo ppo.rollout.colocated=true "ppo.rollout.options=--enforce-eager"
else
  skip "PPO with vLLM in its process" "vllm is not installed beside rlef"
fi
if [ -n "$VLLM" ]; then
  check "PPO with a vLLM server, sync probe" again ppo "ppo.rollout.vllm=$VLLM" "ppo.rollout.options=--gpu-memory-utilization 0.3 --enforce-eager"
else
  skip "PPO with a vLLM server" "no command vllm; set VLLM"
fi

if [ "$gpus" -ge 2 ]; then
  check "NCCL between 2 GPUs" python -m torch.distributed.run --standalone --nproc_per_node=2 --no-python python -c "
import os, torch
torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
torch.distributed.init_process_group('nccl')
ones = torch.ones(1 << 24, device='cuda')
torch.distributed.all_reduce(ones)
assert bool((ones == 2).all()), ones
torch.distributed.destroy_process_group()"
  for stage in sft ppo; do
    check "$stage on 2 GPUs under ZeRO-2" again $stage launch.processes=2 launch.deepspeed=configs/deepspeed/zero2.json
  done
  [ -n "$VLLM" ] && check "PPO with vLLM on a GPU of its own" again ppo "ppo.rollout.vllm=$VLLM" ppo.rollout.gpus=1 "ppo.rollout.options=--enforce-eager"
else
  skip "NCCL, 2 GPUs" "there is one"
fi
check "the tests marked gpu" python -m pytest -m gpu tests
exit $failed
