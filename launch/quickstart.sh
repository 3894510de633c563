#!/usr/bin/env bash
# Install, pretrain on the demo data (emoji with captions, prose), evaluate, say where the report is.
# usage: bash launch/quickstart.sh [a.b=c ...]     recipe overrides, e.g. steps=100 out=runs/short
# Run it again to resume an interrupted run; a finished one is evaluated again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
overrides=("$@")
set --
. launch/setup.sh
# one rank: every GPU of the machine would be much for a few minutes' work
exec bigssl train launch/recipes/demo.yaml --ranks 1 ${overrides[@]+"${overrides[@]}"}
