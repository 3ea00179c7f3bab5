# shellcheck shell=bash
# The scenarios, one after the other, as the machine's user. See machine.sh.
set -euo pipefail
# shellcheck source=tests/backends/lib.sh
. "$SCRIPTS/lib.sh"

if [ "$ENGINE" = dockerd ]; then dockerd_start; fi
for name; do
    rc=0
    start=$(date +%s%N)
    timeout --kill-after=10 "$LIMIT" bash "$SCRIPTS/scenario.sh" "$name" >"$OUT/$name.out" 2>"$OUT/$name.err" </dev/null || rc=$?
    echo $((($(date +%s%N) - start) / 1000000)) >"$OUT/$name.time"
    echo "$rc" >"$OUT/$name.rc"
done
if [ "$ENGINE" = dockerd ]; then dockerd_stop; fi
