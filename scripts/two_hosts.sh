#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces joined by a veth pair, with an address and a rank each. The quickstart's PPO stage runs through
# torchrun and through DeepSpeed's launcher; a host is lost by SIGKILL, then by link down, and each start after that goes on. Needs root.
# Arguments: the folder of the runs and their logs (default: runs/two_hosts), then overrides of the stage, e.g. ppo.prompts_per_iteration=8. What
# it starts from is made small.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then echo "skipped: network namespaces need root"; exit 0; fi
if [ -z "$(command -v ip)" ]; then echo "skipped: no ip command (apt-get install iproute2)"; exit 0; fi
if ! ip netns add rlef0 || ! ip netns add rlef1; then echo "skipped: no network namespaces here"; exit 0; fi
[ -n "${VIRTUAL_ENV:-}" ] || source scripts/setup.sh
runs=${1:-runs/two_hosts} iterations=5 limit=60
overrides=("${@:2}")
a=198.18.77.1 b=198.18.77.2
failed=0

cleanup() {
  for host in rlef0 rlef1; do
    ip netns pids $host | xargs -r kill -9
    ip netns del $host
  done
}
trap cleanup EXIT

ip link add veth0 netns rlef0 type veth peer name veth1 netns rlef1
ip -n rlef0 addr add $a/30 dev veth0
ip -n rlef1 addr add $b/30 dev veth1
for host in 0 1; do ip -n rlef$host link set lo up; ip -n rlef$host link set veth$host up; done

verdict() { # name, condition, what was seen
  if [ "$2" = 0 ]; then echo "pass  $1: $3"; else echo "FAIL  $1: $3"; failed=1; fi
}

rows() { grep -c '"stage": "ppo"' "$run/metrics.jsonl" 2>/dev/null || true; }

start() { # both hosts; their process ids in $first and $second
  for host in 0 1; do
    NODE_RANK=$host ip netns exec rlef$host python -m rlef run configs/quickstart.yaml --only ppo "run.dir=$run" tracking.wandb=disabled \
      launch.device=cpu ppo.iterations=$iterations ppo.save_every=1 "${how[@]}" "${overrides[@]}" >> "$run.host$host.log" 2>&1 &
    [ $host = 0 ] && first=$! || second=$!
  done
}

trained() { # wait until PPO has made so many iterations
  while [ "$(rows)" -lt "$1" ]; do
    kill -0 $first 2>/dev/null || { echo "FAIL  $name: host 0 ended early; see $run.host0.log"; exit 1; }
    sleep 0.2
  done
}

ended() { # seconds until a process is gone, its code in $code
  local began=$SECONDS
  code=0; wait "$1" || code=$?
  seconds=$(( SECONDS - began ))
}

mkdir -p "$runs"
made=$runs/made
small="evolve.rounds=2 evolve.per_round=600 respond.count=400 sft.max_steps=100 label.lists=100 label.count=300 irm.epochs=1 prm.epochs=1"
for stage in problems evolve respond sft label irm prm; do
  [ -f "$made/$stage/manifest.json" ] && continue
  # shellcheck disable=SC2086
  python -m rlef "$stage" configs/quickstart.yaml "run.dir=$made" tracking.wandb=disabled launch.device=cpu $small >> "$made.log" 2>&1
done

for name in torchrun deepspeed; do
  run=$runs/$name
  rm -rf "$run" "$run".host?.log
  cp -r "$made" "$run"
  how=(launch.nodes=2 "launch.rendezvous=$a")
  if [ $name = deepspeed ]; then
    printf '%s slots=1\n' $a $b > "$runs/hostfile"
    how=("launch.hostfile=$runs/hostfile" launch.deepspeed=configs/deepspeed/zero2.json)
  fi

  start; trained 2
  ip netns pids rlef1 | xargs kill -9
  ended $first; wait $second || true
  verdict "$name, host 1 killed" $(( code != 75 || seconds > limit )) "host 0 ended with $code after $seconds s"

  again=$(date +%s)
  start; trained 3
  ip -n rlef1 link set veth1 down
  ended $first; verdict "$name, link down" $(( code != 75 || seconds > limit )) "host 0 ended with $code after $seconds s"
  lost=$seconds; ended $second; verdict "$name, link down" $(( code != 75 || lost + seconds > limit )) "host 1 ended with $code after $(( lost + seconds )) s"
  ip -n rlef1 link set veth1 up

  start
  ended $first; zero=$code; ended $second
  verdict "$name, started again" $(( zero + code )) "codes $zero and $code"
  seen=$(python - "$run/metrics.jsonl" "$again" <<'END'
import json, sys
rows = [row for line in open(sys.argv[1]) if (row := json.loads(line))["stage"] == "ppo"]
before = sum(row["time"] < float(sys.argv[2]) for row in rows)
print(*(row["step"] for row in rows), "before" if before else "none")
END
  )
  all="$(seq -s ' ' 1 $iterations) before" same=0
  [ "$seen" = "$all" ] || same=1
  verdict "$name, went on" $same "iterations $seen the second start"
done
exit $failed
