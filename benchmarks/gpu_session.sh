#!/usr/bin/env bash
# On a machine with a CUDA GPU: verify the kernels, then time them, in under 10 minutes.
# usage: bash benchmarks/gpu_session.sh [RESULTS_FOLDER]     the CSVs are also copied there
# Needs python3 with torch, triton, numpy and pytest; installs nothing. Nothing is timed if the verification fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=kernels
python3 -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'
timeout 240 python3 -m pytest -q -p no:cacheprovider tests/kernels/test_gpu.py tests/kernels/linear_ce/test_gpu.py
started=$(mktemp)
timeout 150 python3 benchmarks/contrastive.py --device cuda --op nt_xent --rows 2048 8192 32768 --dims 128 256 --temperatures 0.1
timeout 150 python3 benchmarks/linear_cross_entropy.py --device cuda --mode speed memory --tokens 4096 --widths 768 \
  --classes 30522 128256 --shares 0.15 1.0
[ -z "${1:-}" ] || find benchmarks/results -newer "$started" -name '*.csv' -exec cp {} "$1" \;
