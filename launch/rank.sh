#!/usr/bin/env bash
# One rank of bigssl/train.py, as one of many tasks that srun starts (launch/slurm.sbatch); MASTER_ADDR and MASTER_PORT
# are given.
# usage: bash launch/rank.sh RECIPE [a.b=c ...]
set -uo pipefail
trap 'exit 75' TERM INT HUP USR1 USR2 # nothing is lost yet
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
if [ -n "${BIGSSL_IMAGE:-}" ]; then # its own Python, not that of the mounted folder
  BIGSSL_VENV="$(dirname "$(dirname "$(command -v python)")")"
fi
# what is compiled belongs to one environment, and on a disk of this machine
place="$(cksum <<<"${BIGSSL_IMAGE:-}:${BIGSSL_VENV:-$root}" | cut -d ' ' -f 1)"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/bigssl-$(id -u)-$place}"

bigssl_recipe "${1:-}"
bigssl_enter
local_ranks="${SLURM_STEP_TASKS_PER_NODE%%[!0-9]*}"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
else
  bigssl_threads "$local_ranks"
fi
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS" LOCAL_WORLD_SIZE="$local_ranks"

exec python -u "$root/bigssl/train.py" --config "$@"
