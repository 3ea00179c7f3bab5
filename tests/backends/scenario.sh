# shellcheck shell=bash
# One scenario, in a process and a directory of its own.
set -euo pipefail
# shellcheck source=tests/backends/lib.sh
. "$SCRIPTS/lib.sh"
# shellcheck source=tests/backends/cli.sh
case $ENGINE in
    podman | dockerd) . "$SCRIPTS/cli.sh" ;;
    buildah) . "$SCRIPTS/buildah.sh" ;;
esac
mkdir -p "$HOME/$1"
cd "$HOME/$1"
"scenario_${1//-/_}"
