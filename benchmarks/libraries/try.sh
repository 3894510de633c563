#!/usr/bin/env bash
# Runs a command where a library's version stands in the place of ours (in a copy of the packages, behind our own):
#   bash benchmarks/libraries/try.sh bigssl/data/loading/workers.py benchmarks/libraries/workers_dataloader.py \
#     python -m pytest tests/data/loading
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/bigssl" "$root/kernels/bigssl_kernels" "$copy/"
cat "$root/$2" >> "$copy/$1"
cd "$root"
export PYTHONPATH="$copy" PYTHONSAFEPATH=1  # or the folder it is called in would come first
"${@:3}"
