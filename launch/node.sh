#!/usr/bin/env bash
# What a machine says of itself before ranks are started on it by ssh: `ok ADDRESS CODE`, or a sentence and exit code 2.
# usage: launch/node.sh FIRST RECIPE [--bind]    ADDRESS: that of the machine FIRST, as this one reaches it
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
bigssl_recipe "${2:-}"
[ "${3:-}" != --bind ] || bigssl_bindable
bigssl_enter
python - "$1" "$2" <<'PYTHON'
import socket, sys, zlib
from bigssl.engine.meeting.versions import fingerprint
try:
    address = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)[0][4][0]
except OSError as error:
    sys.exit(f"bigssl: {sys.argv[1]}: {error.strerror or error} on {socket.gethostname()}, which has to reach it")
recipe = zlib.crc32(open(sys.argv[2], "rb").read())
print("ok", address, ", ".join(f"{k} {v}" for k, v in fingerprint().items()), f"and recipe {recipe:08x}")
PYTHON
