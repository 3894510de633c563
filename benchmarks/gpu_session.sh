#!/usr/bin/env bash
# On a machine with a CUDA GPU: verify kernels and driver, then time what is right, in under 10 minutes.
# usage: bash benchmarks/gpu_session.sh [RESULTS_FOLDER [verify|time|all]]     logs and CSVs are also copied there
#        bash benchmarks/gpu_session.sh RESULTS_FOLDER recipes CIFAR10        every recipe of CIFAR-10, 40 steps of each
# CIFAR10: a folder of shards, train and val (`bigssl shards pack` of folders of pictures, one a class).
# Needs an environment with bigssl[dev] (or its packages, and PYTHONPATH=.:kernels); installs nothing. A family whose
# verification fails is not timed; the rest goes on. Exit status 1 if anything failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=${1:-$(mktemp -d)} what=${2:-all}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
python -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())' || exit 1
mkdir -p "$results"
failed=0
declare -A right=([contrastive]=0 [linear_ce]=0)

verify() { # NAME SECONDS PYTEST'S ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  timeout "$seconds" python -P -m pytest -q -m gpu --tb=short -rfEP -p no:cacheprovider -o filterwarnings=default -W ignore "$@" \
    >"$results/$name.log" 2>&1
}

if [ "$what" = recipes ]; then
  train() { # NAME: as its user runs it, but for the number of steps and what follows them
    timeout 200 python -m bigssl train "launch/recipes/gpu/$1-cifar10.yaml" fill.root="$root" steps=40 optim.warmup=4 log_every=5 \
      data.workers=2 probe=null evaluate=null out="$results/runs/$1" >"$results/runs/$1.log" 2>&1 ||
      { echo "$1: exit status $?"; tail -n 4 "$results/runs/$1.log" | cut -c1-300; exit 1; }
  }
  export -f train
  export results root=${3:?folder of shards, train and val}
  mkdir -p "$results/runs"
  basename -as -cifar10.yaml launch/recipes/gpu/*-cifar10.yaml | xargs -P 16 -I NAME bash -c 'train NAME' || failed=1
  python benchmarks/ends.py "$results"/runs/*/ || failed=1
  exit "$failed"
fi
if [ "$what" != time ]; then # side by side: most of it is compilation and starts of processes
  verify contrastive 300 -n 3 tests/kernels/test_gpu.py & contrastive=$!
  verify linear_ce 300 -n 2 tests/kernels/linear_ce/test_gpu.py & linear_ce=$!
  verify tasks 400 -n 11 tests/objectives/test_gpu.py tests/nets/test_norm.py & tasks=$!
  verify driver 300 tests/engine/test_gpu.py & driver=$!
  for name in contrastive linear_ce tasks driver; do
    wait "${!name}" && right[$name]=0 || { right[$name]=$?; failed=1; }
    echo "== $name"
    grep -E '^(FAILED|ERROR)|^E  |^by step|within|passed|failed' "$results/$name.log" | cut -c1-300 | sort | uniq -c | sort -rn | head -60
  done
fi
if [ "$what" != verify ]; then
  started=$(mktemp) # torch.compile, which is beside full logits what dense torch is, would take most of the time
  [ "${right[linear_ce]}" != 0 ] || timeout 120 python benchmarks/linear_cross_entropy.py --device cuda --minutes 1 \
    --mode speed memory --tokens 4096 --widths 768 --classes 30522 128256 --shares 0.15 1.0 --rounds 10 \
    --providers "full logits" gathered liger-kernel cut-cross-entropy ours/triton || failed=1
  [ "${right[contrastive]}" != 0 ] || timeout 120 python benchmarks/contrastive.py --device cuda --op nt_xent clip_loss \
    --rows 2048 8192 32768 --dims 128 --temperatures 0.1 --rounds 10 --budget 1.2 \
    --providers dense lightly open_clip_torch ours/triton || failed=1
  timeout 60 python benchmarks/overhead.py --rounds 5 # a missed aim is a result
  timeout 150 python benchmarks/scaling.py --measure "$results/scaling.json" || failed=1
  find benchmarks/results -newer "$started" -name '*.csv' -exec cp {} "$results" \;
fi
exit "$failed"
