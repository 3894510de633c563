#!/usr/bin/env bash
# Install, lint, check types, test. Ends with pytest's summary; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
arguments=("$@")
set -- dev
. launch/setup.sh dev
ruff check .
mypy bigssl kernels/bigssl_kernels
exec python -m pytest -q ${arguments[@]+"${arguments[@]}"}
