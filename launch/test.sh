#!/usr/bin/env bash
# Install, lint, check types, test. Ends with pytest's summary; arguments go to pytest.
# Files are dealt to two processes (more: -n 8; none: -n 0).
# --matrix [TASK ...]: instead, every pretext task at every ZeRO stage, number of ranks and passes, and precision,
# into docs/contract.md; goes on where it was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
arguments=("$@")
set -- dev
. launch/setup.sh dev
if [ "${arguments[0]:-}" = --matrix ]; then
  exec python tests/objectives/matrix.py "${arguments[@]:1}"
fi
# What the tests of the launchers need besides; without it they are skipped, and say so.
missing=""
for tool in slurmctld munged pdsh sshd tc; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    slurm-wlm munge pdsh openssh-server iproute2; } >/dev/null 2>&1 || echo "bigssl: not installed:$missing; tests of it are skipped"
fi
export OPENBLAS_NUM_THREADS=1  # numpy's threads would wait for cores that the other process of tests has: a tenth
ruff check .
mypy bigssl kernels/bigssl_kernels
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
