# Sourced by quickstart.sh and test.sh: makes and enters the virtual environment, and installs what is missing.
# usage: . launch/setup.sh [EXTRA]       e.g. dev
#   BIGSSL_PYTHON  interpreter (3.10 to 3.13; default: the first of python3, python3.12, python3.11, ... that fits)
#   BIGSSL_VENV    folder of the environment (default .venv)
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, a pip.conf) are respected: name an index with CPU builds of
# torch there to spare a machine without a GPU the CUDA libraries.

. launch/environment.sh

bigssl_find_python() {
  local candidate
  for candidate in ${BIGSSL_PYTHON:-python3 python3.12 python3.13 python3.11 python3.10}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
      echo "$candidate"
      return
    fi
  done
  echo "bigssl: no Python 3.10 to 3.13 found; install one, or set BIGSSL_PYTHON=/path/to/python3" >&2
  return 1
}

bigssl_install() {
  local extra="$1" python
  export BIGSSL_VENV="${BIGSSL_VENV:-.venv}"
  if [ ! -x "$BIGSSL_VENV/bin/python" ]; then
    python="$(bigssl_find_python)" || return 1
    "$python" -m venv "$BIGSSL_VENV" || {
      echo "bigssl: $python cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  export PATH="$(cd "$BIGSSL_VENV" && pwd)/bin:$PATH"
  local stamp wanted
  stamp="$BIGSSL_VENV/.bigssl-installed${extra:+-$extra}"
  wanted="$(pwd) $(cat pyproject.toml constraints.txt | cksum)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "bigssl: installing into $BIGSSL_VENV (once; some minutes)"
    pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel torch || return 1
    # DeepSpeed's set-up imports torch: it has to see this environment, and must not compile its CUDA operators.
    DS_BUILD_OPS=0 pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed ||
      return 1
    pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extra:+[$extra]}" || return 1
    # timm asks for torchvision, whose wheel breaks beside a CPU build of torch; its networks do without it.
    [ "$extra" != dev ] || pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm || return 1
    echo "$wanted" >"$stamp"
  fi
  bigssl_extensions "$(cd "$BIGSSL_VENV" && pwd)/torch_extensions"
  export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
}

bigssl_install "${1:-}" || exit 1
