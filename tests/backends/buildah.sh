# shellcheck shell=bash disable=SC2016
# The scenarios of buildah.

# The images, once a machine. `from scratch` needs no other engine.
scenario_import() {
    local name container
    for name in busybox:bb base:base; do
        container=$(buildah from scratch)
        buildah add -q "$container" "$ASSETS/${name%:*}.tar" / >/dev/null
        buildah commit -q --rm "$container" "${name#*:}:1" >/dev/null
    done
    buildah images --format '{{.Name}}:{{.Tag}}' | sed 's|^localhost/||' | sort
}

# in_image IMAGE COMMAND…: in a new container of it, which is removed again.
in_image() {
    local container rc=0
    container=$(buildah from "$1")
    shift
    buildah run --network none "$container" -- "$@" || rc=$?
    buildah rm "$container" >/dev/null
    return $rc
}

scenario_run() {
    local c
    c=$(buildah from bb:1)
    buildah run --network none "$c" -- echo hello
    buildah run --network none "$c" -- sh -c 'rm /etc/issue; mkdir /etc/issue; echo x >/etc/issue/x; rm -rf /usr/share/tree; mkdir /usr/share/tree'
    # The next process sees what the last one left.
    buildah run --network none "$c" -- sh -c 'cat /etc/issue/x; ls /usr/share/tree | wc -l; exit 7' || echo "exit $?"
    buildah run --network none --user 1000:1000 "$c" -- sh -c 'echo x >/tmp/x; cat /tmp/x; mkdir /tmp/d; mv /tmp/x /tmp/d/y; cat /tmp/d/y; rm /etc/passwd || echo refused' 2>/dev/null
    mkdir -p dir
    echo host >dir/host
    buildah run --network none -v "$PWD/dir:/mnt" "$c" -- sh -c 'cat /mnt/host; echo back >/mnt/back'
    cat dir/back
    buildah run --network none -v "$PWD/dir:/mnt:O" "$c" -- sh -c 'rm /mnt/host; ls /mnt'
    ls dir
    buildah rm "$c" >/dev/null
}

scenario_build() {
    cp "$SCRIPTS/Containerfile" .
    cp -r "$ASSETS/debs" .
    buildah build --network none --layers -t built:1 -f Containerfile . >build.log 2>&1 || {
        tail -n 50 build.log >&2
        fail build
    }
    c=$(buildah from built:1)
    # shellcheck disable=SC2030 # for this command
    buildah config --env T0="$T0" "$c"
    buildah run --network none "$c" -- sh -c "$FACTS"
    buildah rm "$c" >/dev/null
}

scenario_whiteouts() {
    cp "$SCRIPTS/Containerfile.layers" Containerfile
    buildah build --network none --layers -t layers:1 . >build.log 2>&1 || {
        cat build.log >&2
        fail build
    }
    c=$(buildah from layers:1)
    buildah config --env T0="$T0" "$c"
    buildah run --network none "$c" -- sh -c "$BUSYBOX_FACTS"
    buildah rm "$c" >/dev/null
    # All steps in one layer.
    buildah build --network none --layers=false -t squashed:1 . >/dev/null 2>&1
    in_image squashed:1 sh -c 'find /usr /srv | sort'
}

scenario_commit() {
    local c
    c=$(buildah from layers:1)
    buildah run --network none "$c" -- sh -c 'rm -rf /usr/share/tree; mkdir /usr/share/tree; echo new >/usr/share/tree/new; rm /etc/issue
        rm -rf /usr/share/many; chown -R 33:33 /srv; mkdir -p /opt/a/b; echo x >/opt/a/b/c; rm -rf /usr/share/locale; mkdir /usr/share/locale'
    buildah config --cmd 'cat /opt/a/b/c' --env A=b "$c"
    buildah commit -q --rm "$c" committed:1 >/dev/null
    c=$(buildah from committed:1)
    buildah config --env T0="$T0" "$c"
    buildah run --network none "$c" -- sh -c "$BUSYBOX_FACTS; echo \$A"
    buildah commit -q --squash --rm "$c" committed:2 >/dev/null
    in_image committed:2 sh -c 'find /usr /srv /opt | sort'
}

scenario_cp() {
    local c
    mkdir -p in/sub
    echo one >in/one
    echo two >in/sub/two
    c=$(buildah from layers:1)
    buildah copy -q "$c" in /srv/dir >/dev/null
    buildah copy -q --chown 33:33 --chmod 640 "$c" in/one /etc/issue >/dev/null
    buildah run --network none "$c" -- sh -c 'find /srv | sort; cat /etc/issue; stat -c "%a %u:%g" /etc/issue'
    buildah copy -q --from committed:1 "$c" /opt/a /opt/copied >/dev/null
    buildah run --network none "$c" -- find /opt
    buildah rm "$c" >/dev/null
}

# Changes by the host's own programs, through the mount.
scenario_mount() {
    local c
    c=$(buildah from layers:1)
    # shellcheck disable=SC2016
    in_engine sh -euc 'm=$(buildah mount "$1"); cd "$m"; ls usr/share; rm -rf usr/share/tree; mkdir usr/share/tree; echo x >usr/share/tree/x
        echo mounted >srv/mounted; chown 12:34 srv/mounted; mv usr/share/plain usr/share/moved; cd /; buildah umount "$1" >/dev/null' sh "$c"
    buildah run --network none "$c" -- sh -c 'find /usr/share /srv | sort; stat -c %u:%g /srv/mounted'
    buildah rm "$c" >/dev/null
}

scenario_save_load() {
    buildah push -q layers:1 "oci-archive:$PWD/layers.tar:layers:1"
    in_image layers:1 sh -c 'find / -xdev | grep -v "^/\(proc\|sys\|dev\|run\)" | sort' >before
    buildah tag layers:1 kept:1
    buildah rmi layers:1 >/dev/null
    buildah pull -q "oci-archive:$PWD/layers.tar" >/dev/null
    in_image layers:1 sh -c 'find / -xdev | grep -v "^/\(proc\|sys\|dev\|run\)" | sort' >after
    cmp before after
    cat after
    buildah rmi kept:1 >/dev/null
}

scenario_two_at_once() {
    local i c pids=()
    for i in 1 2 3 4; do
        (
            c=$(buildah from --name "at-once-$i" layers:1)
            buildah run --network none "$c" -- sh -c "for n in \$(seq 200); do echo $i >/usr/share/tree/$i-\$n; done; echo $i >/etc/issue; ls /usr/share/tree | wc -l; cat /etc/issue"
        ) >"$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i"; done
    cat 1 2 3 4
    buildah rm at-once-1 at-once-2 at-once-3 at-once-4 >/dev/null
}

scenario_prune() {
    printf 'FROM layers:1\nRUN echo gone >/gone\nRUN rm /gone\n' >Containerfile
    buildah build --layers --network none -t pruned:1 . >/dev/null 2>&1
    buildah rmi pruned:1 >/dev/null
    buildah rmi --prune >/dev/null
    buildah images --format '{{.Name}}:{{.Tag}}' | sed 's|^localhost/||' | sort
    in_image layers:1 ls /usr/share/tree
}

# The daemon of a mount is killed while a command runs in it; the container can be used again, and removed.
scenario_killed() {
    local c before pid
    before=$(daemons)
    c=$(buildah from layers:1)
    buildah run --network none "$c" -- sh -c 'echo kept >/srv/kept; sync; sleep 1000' >/dev/null 2>&1 &
    wait_for pgrep -x sleep
    if [ "$DRIVER" != kernel ]; then
        pid=$(comm -13 <(sort <<<"$before") <(daemons | sort))
        [ "$(wc -w <<<"$pid")" = 1 ] || fail "daemons before: $before, new: $pid"
        in_engine kill -9 "$pid"
    fi
    pkill -9 -x sleep || true
    wait $! || true
    buildah umount "$c" >/dev/null 2>&1 || true
    buildah run --network none "$c" -- sh -c 'cat /srv/kept; ls /usr/share/tree; echo again >/srv/kept; cat /srv/kept'
    buildah rm "$c" >/dev/null
    in_image layers:1 ls /srv
}

# Every command of the README's page, in its order.
scenario_readme() {
    readme_storage buildah
    readme_commands buildah
    bash -xeuo pipefail commands.sh
}

# Nothing is left: no process of the driver, no mount.
scenario_nothing_left() {
    buildah rm --all >/dev/null
    wait_for sh -c "! pgrep -f '^($BIN/)?(rovl|fuse-overlayfs) '"
    # The table begins with what others have mounted on this host.
    in_engine sh -c 'grep -E " fuse(\.[^ ]*)? |/merged " /proc/self/mountinfo | grep -cF " $1/" || true' sh "$DIR"
    buildah containers -q | wc -l
}
