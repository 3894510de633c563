#!/usr/bin/env bash
# Train on this machine: a rank for each of its GPUs, or one without.
# usage: launch/local.sh [--ranks N] [--bind] RECIPE [a.b=c ...] [-- OPTIONS OF DEEPSPEED'S LAUNCHER]
#   --ranks N  as many ranks (on a CPU, too)
#   --bind     bind each rank to cores of its own (needs numactl)
# The same command again goes on where it stopped. Exit codes: bigssl/exits.py.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ranks="" bind=()
while [ $# -gt 0 ]; do
  case "$1" in
  --ranks) ranks="${2:-}" && bigssl_count --ranks "$ranks" && shift 2 ;;
  --bind) bigssl_bindable && bind=(--bind_cores_to_rank) && shift ;;
  -*) bigssl_refuse "option $1: unknown here; allowed before the recipe: --ranks, --bind; the launcher's own after --" ;;
  *) break ;;
  esac
done
bigssl_recipe "${1:-}"
bigssl_enter
[ -n "${OMP_NUM_THREADS:-}" ] || bigssl_threads "${ranks:-$(bigssl_ranks)}"

words=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1") && shift; done
options=("${@:2}" ${bind[@]+"${bind[@]}"})
[ -z "$ranks" ] || words+=(--ranks "$ranks")
exec python -m bigssl train "${words[@]}" ${options[@]+-- "${options[@]}"}
