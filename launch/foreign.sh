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
environments="$(realpath -m "${BIGSSL_FOREIGN:-.venv-foreign}")"
torch="$(python -c 'import importlib.metadata as m; print("torch==" + m.version("torch").partition("+")[0])')"
declare -A needs=(
  [transformers]="$torch transformers==5.23.0 pillow numpy"
  [onnx]="onnxruntime==1.32.0 onnx==1.23.2 tokenizers pillow numpy"
  [sentence-transformers]="$torch sentence-transformers==6.2.0"
  [timm]="$torch pillow numpy safetensors pyyaml huggingface_hub"
)
# timm imports torchvision and uses it in none of its networks; builds of it that fit a CPU build of torch are not to be
# had everywhere, so that a stand-in takes its place, and pictures are prepared by the settings that timm would read.
alone="timm==1.0.31"
failed=0
for format in transformers onnx sentence-transformers timm; do
  foreign="$environments/$format"
  if [ ! -f "$foreign/installed" ]; then
    python -m venv "$foreign"
    # shellcheck disable=SC2086
    "$foreign/bin/pip" install --quiet --disable-pip-version-check ${needs[$format]}
    if [ "$format" = timm ]; then
      "$foreign/bin/pip" install --quiet --disable-pip-version-check --no-deps "$alone"
      printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$foreign/bin/python" \
        "$PWD/tests/transfer/leaving/without_torchvision.py" >"$foreign/bin/with-stand-in"
      chmod +x "$foreign/bin/with-stand-in"
    fi
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
  interpreter="$foreign/bin/python"
  if [ "$format" = timm ]; then interpreter="$foreign/bin/with-stand-in"; fi
  bigssl export "$run" --format "$format" --to "$left" --python "$interpreter" || failed=1
  if [ "$types" = all ]; then
    python tests/transfer/leaving/every_type.py "$format" --python "$interpreter" || failed=1
  fi
done
exit $failed
