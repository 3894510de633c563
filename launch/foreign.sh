#!/usr/bin/env bash
# What left the run is reloaded in environments that have nothing but the foreign library, one for each, and every type of
# backbone in every format besides. Not for CI: it installs some GB and takes a while.
# usage: bash launch/foreign.sh [RUN [TYPES]]       default runs/demo; TYPES: "all" for every type of backbone as well
#   BIGSSL_FOREIGN  folder of the environments (default .venv-foreign); they are kept for the next time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run="${1:-runs/demo}" types="${2:-}"
set --
. launch/setup.sh dev
environments="${BIGSSL_FOREIGN:-.venv-foreign}"
torch="$(python -c 'import importlib.metadata as m; print("torch==" + m.version("torch").partition("+")[0])')"
declare -A needs=(
  [transformers]="$torch transformers==5.23.0 pillow numpy"
  [onnx]="onnxruntime==1.32.0 onnx==1.23.2 tokenizers pillow numpy"
  [sentence-transformers]="$torch sentence-transformers==6.2.0"
  [timm]="$torch timm==1.0.31 pillow numpy"
)
failed=0
for format in transformers onnx sentence-transformers timm; do
  foreign="$environments/$format"
  if [ ! -f "$foreign/installed" ]; then
    python -m venv "$foreign"
    # shellcheck disable=SC2086
    "$foreign/bin/pip" install --quiet --disable-pip-version-check ${needs[$format]}
    touch "$foreign/installed"
  fi
  if "$foreign/bin/python" -I -c 'import bigssl' 2>/dev/null; then
    echo "bigssl: $foreign is not bare: bigssl is in it" >&2
    exit 1
  fi
  left="$run/left/$format"
  rm -rf "$left"
  mkdir -p "$run/left"
  echo "== $format in $foreign"
  bigssl export "$run" --format "$format" --to "$left" --python "$foreign/bin/python" || failed=1
  if [ "$types" = all ]; then
    python tests/transfer/leaving/every_type.py "$format" --python "$foreign/bin/python" || failed=1
  fi
done
exit $failed
