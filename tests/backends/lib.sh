# shellcheck shell=bash disable=SC2013,SC2034
# What the scenarios share. Their stdout must be the same whatever the driver: it is compared with what the
# kernel's overlayfs gives.

# The command line of the engine, as it is typed.
E=$ENGINE
if [ "$ENGINE" = dockerd ]; then E=docker; fi
export DOCKER_HOST=unix://$HOME/docker.sock

fail() {
    echo "FAILED: $*"
    echo "FAILED: $*" >&2
    exit 1
}

# try COMMAND…: what it prints and how it ends, when it may fail.
try() {
    local rc=0
    "$@" 2>&1 || rc=$?
    echo "exit $rc"
}

wait_for() {
    local i
    for ((i = 0; i < 1200; i++)); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    fail "not within 60 s: $*"
}

# The command that starts dockerd, with a storage driver unless its daemon.json says which.
dockerd_command() {
    local config=/etc/docker/daemon.json
    # shellcheck disable=SC2054 # nofile's commas
    DOCKERD=(dockerd --host "$DOCKER_HOST" --data-root "$HOME/docker" --exec-root "$HOME/docker-exec"
        --pidfile "$HOME/docker.pid" --bridge none --iptables=false --ip6tables=false
        --default-ulimit nofile=1024:1024 --add-runtime crun=/usr/bin/crun --default-runtime crun)
    if [ "$PRIVILEGE" = rootless ]; then
        config=$HOME/.config/docker/daemon.json
        DOCKERD=(rootlesskit --net host --copy-up /etc --copy-up /run --propagation rslave --state-dir "$HOME/rootlesskit"
            "${DOCKERD[@]}" --rootless)
    fi
    if [ -e "$config" ]; then return; fi
    if [ "$DRIVER" = kernel ]; then DOCKERD+=(--storage-driver overlay2); else DOCKERD+=(--storage-driver fuse-overlayfs); fi
}

dockerd_start() {
    dockerd_command
    "${DOCKERD[@]}" </dev/null >>"$OUT/dockerd.log" 2>&1 &
    echo $! >"$HOME/dockerd.child"
    wait_for docker info
}

# dockerd 20.10 says that it has shut down, and then may go on for half a minute, to connect to the containerd that it
# has ended. Three signals end it at once.
dockerd_stop() {
    local child before
    child=$(cat "$HOME/dockerd.child")
    before=$(grep -c 'Daemon shutdown complete' "$OUT/dockerd.log" || true)
    kill "$child"
    wait_for sh -c "! kill -0 $child || [ \$(grep -c 'Daemon shutdown complete' '$OUT/dockerd.log') -gt $before ]"
    sleep 0.5
    for _ in 2 3; do
        kill "$child" 2>/dev/null || true
        sleep 0.2
    done
    wait_for sh -c "! kill -0 $child"
}

# in_engine COMMAND…: in the namespaces where the engine's mounts are.
in_engine() {
    case $ENGINE.$PRIVILEGE in
        *.root) "$@" ;;
        podman.*) podman unshare "$@" ;;
        buildah.*) buildah unshare "$@" ;;
        dockerd.*) nsenter --target "$(cat "$HOME/rootlesskit/child_pid")" --user --mount --preserve-credentials "$@" ;;
    esac
}

# The kernel shows daemons by what serves them.
daemons() { pgrep -f "^($BIN/)?(rovl|fuse-overlayfs) " || true; }

# A time that lies between what came with an image and what was made here.
T0=$(stat -c %Y "$ASSETS/base.tar")
export T0

# The facts of the tree beneath / in a container with GNU's find, one line each: type, mode, owner, size, target
# and time of each entry, the sum of each file's contents. Times of what is newer than the images are left out,
# and what contains times or inode numbers itself.
# shellcheck disable=SC2016 # expanded in the container
FACTS='cd / && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/mtab -o -path ./.dockerenv \) -prune -o -path ./etc -o -path . -o ! -newermt "@$T0" \( -type f -printf "%p %y %m %U:%G %s %T@\n" -o -printf "%p %y %m %U:%G %l %T@\n" \) -o \( -type f -printf "%p %y %m %U:%G %s\n" -o -printf "%p %y %m %U:%G %l\n" \) | sort
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./var/log -o -path ./var/cache -o -name "*.pyc" -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./etc/hostname \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum'

# layer_facts ARCHIVE: what the layers of a saved image (docker's form) hold, but for times.
layer_facts() {
    local dir layer
    dir=$(mktemp -d -p "$PWD")
    tar -xf "$1" -C "$dir"
    for layer in $(grep -o '"Layers":\[[^]]*' "$dir/manifest.json" | grep -o '[^",[:space:]]*layer.tar\|[0-9a-f]*\.tar'); do
        echo "layer"
        tar --numeric-owner -tvf "$dir/$layer" | awk '{ $4 = $5 = ""; print }' | sed 's|  *\./| |; s|/$||' | sort -k 4
    done
    rm -rf "$dir"
}

# The same with what busybox can do.
# shellcheck disable=SC2016 # expanded in the container
BUSYBOX_FACTS='cd / && find . -xdev ! -path "./proc*" ! -path "./sys*" ! -path "./dev*" ! -path "./run*" ! -path "./bin/*" ! -path . ! -path ./etc/hosts ! -path ./etc/hostname ! -path ./etc/resolv.conf ! -path ./etc/mtab ! -path ./.dockerenv | sort | while read -r f; do
    t=$(stat -c %Y "$f"); if [ "$t" -gt "$T0" ]; then t=new; fi; if [ "$f" = ./etc ]; then t=; fi
    if [ -L "$f" ]; then s=$(readlink "$f"); elif [ -f "$f" ]; then s=$(sha256sum <"$f"); else s=; fi
    stat -c "%n %F %a %u:%g $t $s" "$f"
done'

# readme_section NAME: that page of the README.
readme_section() { awk -v name="### $1" '$0 == name { on = 1; next } /^##/ { on = 0 } on' "$SCRIPTS/README.md"; }

# readme_blocks NAME KIND: the fenced blocks of a kind in it.
readme_blocks() { readme_section "$1" | awk -v kind="\`\`\`$2" '$0 == kind { on = 1; next } /^```/ { on = 0 } on'; }

# readme_commands NAME: the commands in it, without what they print.
readme_commands() {
    readme_blocks "$1" console | sed -n 's/^\$ //p' >commands.sh
    [ -s commands.sh ] || fail "README.md has no commands for $1"
    cat commands.sh >&2
}

# readme_storage NAME: puts the storage.conf of that page where the machine has its own.
readme_storage() {
    local places=''
    readme_blocks "$1" toml >storage.toml
    grep -q "mount_program = \"$BIN/rovl\"" storage.toml || fail "README.md has no mount_program for $1"
    if [ "$PRIVILEGE" = root ]; then places='graphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"'; fi
    # As podman is installed by Debian, root has to name its directories as soon as there is a file.
    sed "s|^driver = .*|&\n$places|" storage.toml >"$STORAGE_CONF"
    printf 'FROM bb:1\nRUN echo hello >/hello\nCMD ["cat", "/hello"]\n' >Containerfile
}
