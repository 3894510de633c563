# Sourced by the launchers: what each of them has to find out about the machine, and says in a sentence where it is not
# as it must be. Only functions; nothing is installed, nothing needs root.
#   BIGSSL_VENV  folder of the virtual environment (default .venv beside launch/, where there is one; else `python`)

BIGSSL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# bigssl_refuse SENTENCE: ends the script as bigssl does where nothing was started (bigssl/exits.py: REFUSED).
bigssl_refuse() {
  echo "bigssl: $1" >&2
  exit 2
}

# bigssl_extensions FOLDER: where DeepSpeed compiles. It waits for ever on the lock that a killed build left: a folder
# of this environment's own, without stale locks.
bigssl_extensions() {
  export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$1}"
  mkdir -p "$TORCH_EXTENSIONS_DIR" || return 1
  find "$TORCH_EXTENSIONS_DIR" -name lock -mmin +30 -delete
}

# bigssl_enter: puts the environment that has bigssl on the path, and sets what every rank needs.
bigssl_enter() {
  local venv="${BIGSSL_VENV:-$BIGSSL_ROOT/.venv}" where
  if [ -x "$venv/bin/python" ]; then
    export PATH="$venv/bin:$PATH"
  elif [ -n "${BIGSSL_VENV:-}" ]; then
    bigssl_refuse "BIGSSL_VENV: no $venv/bin/python on $(uname -n); allowed: a virtual environment with bigssl in it"
  fi
  where="$(python -c 'import importlib.util as u, sys; print(sys.prefix); sys.exit(not u.find_spec("bigssl"))' 2>&1)" ||
    bigssl_refuse "no bigssl in $(command -v python || echo "any python on the path") on $(uname -n); \
install it (. launch/setup.sh), or set BIGSSL_VENV to the environment that has it"
  bigssl_extensions "$where/torch_extensions" 2>/dev/null ||
    bigssl_refuse "TORCH_EXTENSIONS_DIR: ${TORCH_EXTENSIONS_DIR:-} cannot be written to; set it to a folder of your own"
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
}

# bigssl_recipe FILE: refuses one that cannot be read here. (What is in it, the ranks check.)
bigssl_recipe() {
  [ -n "${1:-}" ] || bigssl_refuse "no recipe given; allowed: a YAML file, for example launch/recipes/demo.yaml"
  if [ ! -f "$1" ] || [ ! -r "$1" ]; then
    bigssl_refuse "recipe: no file $1 in $(pwd) on $(uname -n) that can be read"
  fi
}

# bigssl_count NAME VALUE: refuses what is no number above zero.
bigssl_count() {
  case "$2" in '' | *[!0-9]* | 0) bigssl_refuse "$1: value '$2'; allowed: a number above zero" ;; esac
}

# bigssl_ranks: prints how many ranks this machine has room for: one per GPU, one without.
bigssl_ranks() {
  local found
  found="$(python -c 'import torch; print(torch.accelerator.device_count())' 2>/dev/null)" ||
    bigssl_refuse "python cannot import torch on $(uname -n); try it: python -c 'import torch'"
  if [ "$found" -gt 0 ]; then echo "$found"; else echo 1; fi
}

# bigssl_threads RANKS: compute threads of a rank, unless set: the cores of this machine, divided. Without it each rank
# would take all of them.
bigssl_threads() {
  local cores
  cores="$(nproc)"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
}

# bigssl_bindable: refuses --bind where the launcher would fail at it with a traceback.
bigssl_bindable() {
  command -v numactl >/dev/null ||
    bigssl_refuse "--bind: no numactl on $(uname -n), by which ranks are bound to cores; install it, or leave --bind out"
  [ -z "${KMP_AFFINITY:-}" ] || bigssl_refuse "--bind: KMP_AFFINITY is set, which would bind again; unset it"
}

# bigssl_forward FILE [NAME=VALUE ...]: what nodes reached by ssh get of this environment, as DeepSpeed reads it
# (DS_ENV_FILE): given words, variables of the libraries, and the user's own files, which FILE would replace.
bigssl_forward() {
  local file="$1" line name value
  shift
  {
    while IFS='=' read -r -d '' name value; do
      case "$name" in
      *KEY* | *TOKEN | *SECRET* | *PASS*) ;; # the file, and the command lines of ssh, are read by others
      BIGSSL_* | NCCL_* | GLOO_* | OMP_* | TORCH_* | DS_* | HF_* | TOKENIZERS_* | CUDA_HOME | LD_LIBRARY_PATH | FI_* | UCX_*)
        case "$value" in *$'\n'*) ;; *) echo "$name=$value" ;; esac
        ;;
      esac
    done < <(env -0)
    for line in "$HOME/.deepspeed_env" ./.deepspeed_env; do
      if [ -f "$line" ]; then grep '^[A-Za-z_][A-Za-z0-9_]*=' "$line"; fi
    done
    for line in "$@"; do echo "$line"; done
  } >"$file"
  export DS_ENV_FILE="$file"
}
