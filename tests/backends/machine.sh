# shellcheck shell=bash disable=SC2153
# One machine: an engine as root or without root, with one driver. Started in a mount and a pid namespace of its own, where
# everything that is mounted or started here ends with it. Runs the scenarios that are its arguments one after
# the other and leaves NAME.out, NAME.err, NAME.rc and NAME.time of each in $OUT.
#
# Environment: ENGINE (podman, buildah, dockerd), PRIVILEGE (root, rootless), DRIVER (kernel, fuse-overlayfs,
# rovl), PROGRAM (the mount program), DIR (an empty directory), ASSETS (images.rs), OUT, SCRIPTS, LIMIT (seconds
# a scenario).
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC TERM=dumb
export USER_ID=64123
export HOME=$DIR/home BIN=/usr/local/bin
unset XDG_RUNTIME_DIR XDG_DATA_HOME XDG_CONFIG_HOME DBUS_SESSION_BUS_ADDRESS
unset CONTAINERS_CONF CONTAINERS_STORAGE_CONF STORAGE_DRIVER STORAGE_OPTS DOCKER_HOST DOCKER_CONFIG BUILDAH_ISOLATION

# The machine's own directories over the real ones: nothing of this stays.
private_directories() {
    local file
    mount --make-rshared /
    mount -t tmpfs -o mode=755 none /run
    # crun takes a host with both cgroup hierarchies for one with the second only.
    if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
    mkdir -p "$HOME" "$OUT" "$DIR/bin" "$DIR/lib" "$DIR/lib-docker" "$DIR/tmp"
    chmod 1777 "$DIR/tmp"
    # The whole of /etc: a mount on one file goes as soon as the host replaces that file. What vanishes while it
    # is copied is not needed. A user with 65,536 subordinate ids.
    if ! [ -d "$DIR/etc" ]; then
        cp -a /etc "$DIR/etc" || [ -s "$DIR/etc/passwd" ]
        mkdir -p "$DIR/etc/containers" "$DIR/etc/docker"
        rm -f "$DIR/etc/containers/storage.conf" "$DIR/etc/docker/daemon.json"
        echo "rovler:x:$USER_ID:$USER_ID::$HOME:/bin/bash" >>"$DIR/etc/passwd"
        echo "rovler:x:$USER_ID:" >>"$DIR/etc/group"
        for file in subuid subgid; do echo "rovler:2000000:65536" >>"$DIR/etc/$file"; done
    fi
    mount --bind "$DIR/etc" /etc
    # Where engines keep their things, and /var/tmp, where they put archives.
    mkdir -p /var/lib/containers /var/lib/docker
    mount --bind "$DIR/lib" /var/lib/containers
    mount --bind "$DIR/lib-docker" /var/lib/docker
    mount --bind "$DIR/bin" $BIN
    # Where everybody can reach them.
    mkdir -p "$DIR/assets"
    mount --bind "$ASSETS" "$DIR/assets"
    export ASSETS=$DIR/assets
}

# What the engine needs on any machine with neither systemd nor networks, whichever the driver.
engine_configuration() {
    cat >/etc/containers/containers.conf <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
$([ "$PRIVILEGE" = root ] || echo 'cgroups = "disabled"')
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
END
}

# The one line that changes.
driver_configuration() {
    local program='' conf=/etc/containers/storage.conf
    if [ "$DRIVER" = kernel ]; then
        rm -f $BIN/fuse-overlayfs
    else
        program="mount_program = \"$BIN/$DRIVER\""
        cp "$PROGRAM" "$BIN/$DRIVER"
        # dockerd takes what has this name.
        if [ "$DRIVER" != fuse-overlayfs ]; then ln -sf "$BIN/$DRIVER" $BIN/fuse-overlayfs; fi
    fi
    if [ "$PRIVILEGE" = rootless ]; then
        conf=$HOME/.config/containers/storage.conf
        mkdir -p "${conf%/*}"
    fi
    export STORAGE_CONF=$conf
    cat >"$conf" <<END
[storage]
driver = "overlay"
$([ "$PRIVILEGE" = rootless ] || printf 'graphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n')
[storage.options.overlay]
$program
END
}

private_directories
engine_configuration
driver_configuration
export PATH=$BIN:/usr/sbin:/usr/bin:/sbin:/bin
AS=()
if [ "$PRIVILEGE" = rootless ]; then
    # Short: podman takes no more than 50 bytes.
    export XDG_RUNTIME_DIR=/run/user/$USER_ID USER=rovler
    mkdir -p "$XDG_RUNTIME_DIR" && chmod 700 "$XDG_RUNTIME_DIR"
    chown -R $USER_ID:$USER_ID "$HOME" "$OUT" "$XDG_RUNTIME_DIR" "$DIR/bin"
    AS=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups)
fi
cd "$HOME"
exec "${AS[@]}" bash "$SCRIPTS/run.sh" "$@"
