#!/usr/bin/env bash
# Train on several machines that see one file system: the same paths on all of them.
# by ssh, started on one:     launch/multinode.sh --hostfile HOSTS RECIPE [a.b=c ...] [-- OPTIONS OF DEEPSPEED'S LAUNCHER]
# without, started on each:   launch/multinode.sh --nodes N --node_rank R --master_addr ADDRESS RECIPE [a.b=c ...] [-- ...]
#   HOSTS               a line `NAME slots=RANKS` a machine; rank 0 is on the first
#   --ranks N           ranks on each machine (default: those of HOSTS; without it, the GPUs of this machine, or one)
#   --master_addr, --master_port   where the ranks meet (default: the first of HOSTS; 29500)
#   --bind              bind each rank to cores of its own (needs numactl)
#   --restarts N        by ssh: when the run fails, start it again, up to N times, on as many of the machines that answer
#                       as `bigssl plan` finds no fault with (their ranks have to divide the batch)
# The same command again goes on where it stopped. Exit codes: bigssl/exits.py.
# Of a run by ssh, PDSH_SSH_ARGS_APPEND adds options to ssh.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

hostfile="" nodes="" node_rank="" address="" port=29500 ranks="" restarts=0 bind=()
while [ $# -gt 0 ]; do
  case "$1" in
  --bind) bind=(--bind_cores_to_rank) && shift && continue ;;
  --hostfile) hostfile="${2:-}" ;;
  --nodes) nodes="${2:-}" && bigssl_count --nodes "$nodes" ;;
  --node_rank) node_rank="${2:-}" ;;
  --master_addr) address="${2:-}" ;;
  --master_port) port="${2:-}" && bigssl_count --master_port "$port" ;;
  --ranks) ranks="${2:-}" && bigssl_count --ranks "$ranks" ;;
  --restarts) restarts="${2:-}" && bigssl_count --restarts "$restarts" ;;
  -*) bigssl_refuse "option $1: unknown here; allowed before the recipe: those of the first lines of launch/multinode.sh; \
the launcher's own after --" ;;
  *) break ;;
  esac
  [ $# -gt 1 ] || bigssl_refuse "option $1: no value given"
  shift 2
done
recipe="${1:-}" words=()
bigssl_recipe "$recipe"
while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1") && shift; done
options=("${@:2}" ${bind[@]+"${bind[@]}"})
bigssl_enter

# Without ssh: DeepSpeed's launcher wants to know the ranks of all machines, here alike, under any names.
if [ -z "$hostfile" ] || [ -n "$node_rank" ]; then
  [ -n "$hostfile$nodes" ] || bigssl_refuse "neither --hostfile nor --nodes given; allowed: one of them (see launch/README.md)"
  [ -n "$address" ] || bigssl_refuse "--master_addr: not given; allowed: the address of the machine of --node_rank 0"
  ranks="${ranks:-$(bigssl_ranks)}"
  if [ -z "$hostfile" ]; then
    case "$node_rank" in '' | *[!0-9]*) bigssl_refuse "--node_rank: value '$node_rank'; allowed: 0 to $((nodes - 1))" ;; esac
    [ "$node_rank" -lt "$nodes" ] || bigssl_refuse "--node_rank: value $node_rank; allowed: 0 to $((nodes - 1))"
    hostfile="${TMPDIR:-/tmp}/bigssl-$(id -u)-$nodes-machines-of-$ranks" # its name says what is in it
    # Containers may share the folder, and number their processes alike.
    written="$(mktemp "$hostfile.XXXXXX")"
    for ((n = 0; n < nodes; n++)); do echo "machine-$n slots=$ranks"; done >"$written"
    mv -f "$written" "$hostfile"
  fi
  [ ${#bind[@]} = 0 ] || bigssl_bindable
  bigssl_threads "$ranks"
  exec python -m bigssl train "${words[@]}" --hostfile "$hostfile" --master_port "$port" -- \
    --no_ssh --node_rank "$node_rank" --master_addr "$address" --log_level error ${options[@]+"${options[@]}"}
fi

if [ ! -f "$hostfile" ] || [ ! -r "$hostfile" ]; then
  bigssl_refuse "--hostfile: no file $hostfile that can be read; allowed: a file with a line \`NAME slots=RANKS\` a machine"
fi
wrong="$(grep -nvE '^[[:space:]]*(#.*)?$|^[[:space:]]*[^[:space:]]+[[:space:]]+slots=[1-9][0-9]*[[:space:]]*$' "$hostfile" | head -1 || true)"
[ -z "$wrong" ] || bigssl_refuse "--hostfile: $hostfile:$wrong; allowed: NAME slots=RANKS"
for tool in pdsh ssh; do
  command -v $tool >/dev/null || bigssl_refuse "no $tool here; install it, or start this on each machine with --node_rank"
done
export PDSH_RCMD_TYPE=ssh PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 \
-o ServerAliveCountMax=3 ${PDSH_SSH_ARGS_APPEND:-}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
grep -E '^[[:space:]]*[^#[:space:]]' "$hostfile" >"$work/hosts"
[ -s "$work/hosts" ] || bigssl_refuse "--hostfile: $hostfile names no machine; allowed: a line \`NAME slots=RANKS\` a machine"

# ask_machines: what each says of itself, into $work/said; prints a sentence for each that cannot train; those that can
# are left in $work/able.
ask_machines() {
  local first names name ask
  first="$(awk '{print $1; exit}' "$work/hosts")"
  names="$(awk '{print $1}' "$work/hosts" | paste -sd,)"
  ask="$(printf '%q ' cd "$PWD") && BIGSSL_VENV=$(printf '%q' "${BIGSSL_VENV:-}") $(printf '%q ' bash "$BIGSSL_ROOT/launch/node.sh" "$first" "$recipe" ${bind[@]+--bind})"
  pdsh -S -w "$names" "$ask" </dev/null >"$work/said" 2>&1 || true
  : >"$work/able"
  while read -r name slots; do
    if grep -q "^$name: ok " "$work/said"; then
      echo "$name $slots" >>"$work/able"
    else
      echo "bigssl: $name: $(grep -E "^(pdsh@[^:]*: )?$name: " "$work/said" | grep -v 'exited with' | tail -1 | sed -E "s/^(pdsh@[^:]*: )?$name: (bigssl: )?//" |
        grep . || echo 'does not answer')" >&2
    fi
  done <"$work/hosts"
}

# refuse_unlike: machines whose code or recipe is another than that of the first.
refuse_unlike() {
  local first name code mine
  first="$(awk '{print $1; exit}' "$work/able")"
  mine="$(sed -n "s/^$first: ok [^ ]* //p" "$work/said")"
  while read -r name _; do
    code="$(sed -n "s/^$name: ok [^ ]* //p" "$work/said")"
    [ "$code" = "$mine" ] || bigssl_refuse "$name has $code; $first has $mine; allowed: the same on every machine"
  done <"$work/able"
}

# leave_out: of $work/able, the most machines, from the first, on whose ranks the run can go on; prints those left out.
leave_out() {
  local count world
  for ((count = $(wc -l <"$work/able"); count > 0; count--)); do
    world="$(head -n "$count" "$work/able" | sed 's/.*slots=//' | awk -v each="${ranks:-0}" '{n += each ? each : $1} END {print n}')"
    if python -m bigssl plan --config "$recipe" --world "$world" "${words[@]:1}" >"$work/plan" 2>&1; then break; fi
  done
  [ "$count" -gt 0 ] || bigssl_refuse "on none of the machines that answer can the run go on: $(tail -n 1 "$work/plan")"
  tail -n "+$((count + 1))" "$work/able" | awk '{printf " %s", $1}'
  head -n "$count" "$work/able" >"$work/fit" && mv "$work/fit" "$work/able"
}

# start: one run on $work/able; its exit code.
start() {
  local child code=0 last
  last="$(awk 'END {print $1}' "$work/able")"
  bigssl_forward "$work/environment"
  python -m bigssl train "${words[@]}" --hostfile "$work/able" --master_port "$port" ${ranks:+--ranks "$ranks"} -- \
    --master_addr "${address:-$(sed -n "s/^$last: ok \([^ ]*\) .*/\1/p" "$work/said")}" --no_ssh_check --force_multi \
    --log_level error ${options[@]+"${options[@]}"} &
  child=$!
  trap 'restarts=0; kill -TERM $child 2>/dev/null' TERM INT HUP
  while kill -0 $child 2>/dev/null; do wait $child && code=0 || code=$?; done
  trap - TERM INT HUP
  return "$code"
}

ask_machines
cmp -s "$work/hosts" "$work/able" || bigssl_refuse "not every machine of $hostfile can train; mend those above, or leave them out"
while true; do
  refuse_unlike
  start && code=0 || code=$?
  case $code in 0 | 2 | 75) exit "$code" ;; esac
  [ "$restarts" -gt 0 ] || exit "$code"
  restarts=$((restarts - 1))
  ask_machines
  [ -s "$work/able" ] || bigssl_refuse "no machine of $hostfile answers any more"
  spare="$(leave_out)" || exit $?
  echo "bigssl: ended with $code; starts again on $(awk '{print $1}' "$work/able" | paste -sd' ') ($restarts restarts left)\
${spare:+; without$spare: \`bigssl plan\` finds fault with more ranks}" >&2
done
